"""The command ``skpatchcore``: demo, benchmark, fit and score.

Only click is imported here; all else, torch above all, where it is needed, so that help
and mistyped options are answered at once.
"""

import contextlib
import difflib
import os
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import click

from skpatchcore import __version__

# What a shell reports for a process that SIGINT ended: 128 + 2.
_INTERRUPTED = 130


# Errors -----------------------------------------------------------------------------


class _Command(click.Command):
    """A command that answers every error in one line, but for ``--debug``."""

    def invoke(self, ctx):
        debug = ctx.params.pop("debug")
        try:
            with _plain_warnings():
                return super().invoke(ctx)
        except KeyboardInterrupt:
            click.echo("Interrupted", err=True)
            ctx.exit(_INTERRUPTED)
        except (click.ClickException, click.Abort, click.exceptions.Exit):
            raise
        except BrokenPipeError:  # Who reads the output has seen enough: click knows.
            raise
        except Exception as error:
            if debug:
                raise
            raise click.ClickException(_describe(error)) from error


class _Group(click.Group):
    command_class = _Command


@contextlib.contextmanager
def _plain_warnings() -> Iterator[None]:
    """Show warnings without the line of code that they come from."""
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_: click.echo(
            f"Warning: {message}", err=True
        )
        yield


def _describe(error: Exception) -> str:
    """Return what to tell a user of an error."""
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror}"
    if isinstance(error, OSError | ValueError | TypeError | ImportError):
        return str(error)
    return f"{type(error).__name__}: {error} (--debug shows where)"


# Types of options -------------------------------------------------------------------


class _CommaSeparated(click.ParamType):
    """Values between commas, or a list of a configuration file, as a tuple."""

    name = "list"

    def __init__(self, inner=click.STRING):
        self.inner = inner

    def convert(self, value, param, ctx):
        parts = value if isinstance(value, list | tuple) else str(value).split(",")
        parts = [part.strip() if isinstance(part, str) else part for part in parts]
        if "" in parts or not parts:
            self.fail(f"{value!r} has nothing before or after a comma.", param, ctx)
        return tuple(self.inner.convert(part, param, ctx) for part in parts)


class _Size(_CommaSeparated):
    """A short side, or height and width, in pixels."""

    name = "size"

    def __init__(self):
        super().__init__(click.IntRange(min=1))

    def convert(self, value, param, ctx):
        sizes = super().convert(value, param, ctx)
        if len(sizes) > 2:
            self.fail(f"{value!r} is neither N nor HEIGHT,WIDTH.", param, ctx)
        return sizes if len(sizes) == 2 else sizes[0]


class _Fraction(click.ParamType):
    """A share, or a number of at least 2: what a lone 1 means is not obvious."""

    name = "fraction"

    def convert(self, value, param, ctx):
        with contextlib.suppress(ValueError):
            if int(str(value)) > 1:
                return int(str(value))
            self.fail(
                f"{value!r} is ambiguous; write 1.0 for all patches, a share such as "
                "0.1, or a number of at least 2.",
                param,
                ctx,
            )
        share = click.FloatRange(0, 1, min_open=True)
        return share.convert(value, param, ctx)


class _KeywordOr(click.ParamType):
    """One of a few words, or a value of another type; "none" becomes None."""

    name = "keyword"

    def __init__(self, inner: click.ParamType, *keywords: str):
        self.inner, self.keywords = inner, keywords

    def convert(self, value, param, ctx):
        if isinstance(value, str) and value.lower() in self.keywords:
            return None if value.lower() == "none" else value.lower()
        try:
            return self.inner.convert(value, param, ctx)
        except click.BadParameter as error:
            words = " or ".join(map(repr, self.keywords))
            self.fail(f"{error.message.rstrip('.')}; nor is it {words}.", param, ctx)


# Configuration file -----------------------------------------------------------------


def _use_config(ctx, param, path: Path | None) -> None:
    """Make the settings in a file the defaults of a command's options."""
    if path is None:
        return
    options = {
        option.name: option
        for option in ctx.command.params
        if isinstance(option, click.Option) and option is not param
    }
    settings = {}
    for key, value in _read_config(path).items():
        name = str(key).replace("-", "_")
        if name not in options:
            close = difflib.get_close_matches(name, options)
            guess = f" Did you mean {' or '.join(close)}?" if close else ""
            raise click.BadParameter(
                f"{path} sets {key!r}, which {ctx.command.name!r} does not know.{guess}"
            )
        if name in settings:
            raise click.BadParameter(f"{path} sets {name!r} twice.")
        settings[name] = _check_setting(path, key, value, options[name].type)
    ctx.default_map = {**(ctx.default_map or {}), **settings}


def _read_config(path: Path) -> dict:
    import yaml

    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        first_lines = " ".join(str(error).split())
        raise click.BadParameter(f"{path} is no YAML file: {first_lines}") from None
    if not isinstance(settings, dict):
        raise click.BadParameter(
            f"{path} must hold lines of the form 'option: value', got "
            f"{type(settings).__name__}."
        )
    return settings


def _check_setting(path: Path, key, value, kind: click.ParamType):
    inner = kind.inner if isinstance(kind, _KeywordOr) else kind
    if isinstance(value, list) and isinstance(inner, _CommaSeparated):
        return value
    if isinstance(value, list | dict):
        raise click.BadParameter(f"{path}: {key!r} takes one value, got {value!r}.")
    # "none" is how options spell what YAML calls null.
    return "none" if value is None else value


# Options ----------------------------------------------------------------------------


def _options(*decorators):
    """Return one decorator that adds options in the order given."""

    def add(function):
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return add


def _option(*names: str, **settings):
    return click.option(*names, **{"show_default": True, **settings})


_POSITIVE = click.IntRange(min=1)
_EXISTING_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_NEW_FILE = click.Path(dir_okay=False, path_type=Path)
_NEW_FOLDER = click.Path(file_okay=False, path_type=Path)

_common_options = _options(
    _option(
        "--config",
        type=_EXISTING_FILE,
        is_eager=True,
        expose_value=False,
        callback=_use_config,
        help="YAML file of options by name; those on the command line win.",
    ),
    click.option("--debug", is_flag=True, help="Show the traceback of an error."),
)
_random_state_option = _option(
    "--random-state",
    type=click.IntRange(min=0),
    metavar="N",
    default=0,
    help="Seed of all that is random.",
)
_device_option = _option(
    "--device",
    type=_KeywordOr(click.STRING, "none"),
    default="none",
    metavar="NAME|none",
    help="Where to compute, 'cuda:1' for instance; none: the GPU if there is one.",
)
_detector_options = _options(
    _option(
        "--backbone",
        default="wide_resnet50_2.tv_in1k",
        help="Network by its timm name; gabor (layers fine,coarse) has no weights.",
    ),
    _option(
        "--weights",
        metavar="FILE|random|none",
        type=_KeywordOr(click.STRING, "none"),
        default="none",
        help="Local weights file, or 'random'; none: those of timm.",
    ),
    _option(
        "--layers",
        metavar="A,B",
        type=_CommaSeparated(),
        default="layer2,layer3",
        help="Layers of the network to read.",
    ),
    _option(
        "--layer-weights",
        metavar="X,Y|auto|none",
        type=_KeywordOr(_CommaSeparated(click.FLOAT), "auto", "none"),
        default="auto",
        help="How much each layer counts; none: all alike.",
    ),
    _option(
        "--image-size",
        metavar="N|H,W|none",
        type=_KeywordOr(_Size(), "none"),
        default="256",
        help="Resize pictures to this short side, or height and width.",
    ),
    _option(
        "--crop-size",
        metavar="N|H,W|none",
        type=_KeywordOr(_Size(), "none"),
        default="none",
        help="Crop the centre after resizing.",
    ),
    _option(
        "--patch-size",
        type=_POSITIVE,
        metavar="N",
        default=3,
        help="Side of the neighbourhood that a patch is averaged over; odd.",
    ),
    _option(
        "--patch-stride",
        type=_POSITIVE,
        metavar="N",
        default=1,
        help="Step between patches.",
    ),
    _option(
        "--descriptor",
        metavar="centered|concat|N",
        type=_KeywordOr(_POSITIVE, "centered", "concat"),
        default="centered",
        help="How a patch is described; N: as in the authors' code, there 1024.",
    ),
    _option(
        "--projection",
        metavar="N|none",
        type=_KeywordOr(_POSITIVE, "none"),
        default="none",
        help="Project patch features to N dimensions at random.",
    ),
    _option(
        "--coreset-fraction",
        metavar="SHARE|N",
        type=_Fraction(),
        default="0.1",
        help="Share, or number, of the training patches to keep.",
    ),
    _option(
        "--coreset-method",
        type=click.Choice(["greedy", "random", "none"]),
        default="greedy",
        help="How to choose the patches to keep; none: keep all.",
    ),
    _option(
        "--coreset-projection-dim",
        metavar="N|none",
        type=_KeywordOr(_POSITIVE, "none"),
        default="128",
        help="Choose by distances in N random dimensions.",
    ),
    _option(
        "--coreset-n-starts",
        type=_POSITIVE,
        metavar="N",
        default=10,
        help="Patches drawn at random to find the first to keep.",
    ),
    _option(
        "--n-neighbors",
        type=_POSITIVE,
        metavar="N",
        default=1,
        help="A patch's score is its mean distance to so many patches kept.",
    ),
    _option(
        "--metric",
        type=click.Choice(["euclidean", "sqeuclidean", "cosine"]),
        default="euclidean",
        help="Distance of patches.",
    ),
    _option(
        "--algorithm",
        type=click.Choice(["auto", "torch", "faiss", "pynndescent"]),
        default="auto",
        help="Nearest-neighbour search.",
    ),
    _option(
        "--reduction",
        metavar="max|SHARE",
        type=_KeywordOr(click.FloatRange(0, 1, min_open=True), "max"),
        default="max",
        help="A picture's score: that of its worst patch, or mean of a top share.",
    ),
    _option(
        "--reweight",
        metavar="N|none",
        type=_KeywordOr(click.IntRange(min=2), "none"),
        default="none",
        help="Neighbours in equation 7 of the paper.",
    ),
    _option(
        "--smoothing",
        type=click.FloatRange(min=0),
        metavar="SIGMA",
        default=4.0,
        help="Standard deviation, in pixels, of the Gaussian that smooths maps.",
    ),
    _device_option,
    _option(
        "--precision",
        type=click.Choice(["auto", "float32", "bfloat16", "float16"]),
        default="auto",
        help="Arithmetic of the network.",
    ),
    _option(
        "--batch-size",
        type=_POSITIVE,
        metavar="N",
        default=32,
        help="Pictures at a time.",
    ),
    _random_state_option,
    _option(
        "-v", "--verbose", count=True, show_default=False, help="Show progress bars."
    ),
)


# Commands ---------------------------------------------------------------------------


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="skpatchcore")
def main():
    """Find defects in pictures, having seen only good parts (PatchCore)."""


@main.command()
@_option(
    "--output",
    type=_NEW_FOLDER,
    default="skpatchcore_demo",
    help="Folder for demo_sheet.png.",
)
@_random_state_option
@_common_options
def demo(output, random_state):
    """Try it out on generated pictures.

    Needs neither data nor a download. Prints how well defects are found, and draws
    pictures, anomaly maps and masks on a sheet.
    """
    from skpatchcore._benchmark import format_table
    from skpatchcore._demo import COLUMNS, draw_sheet, run_demo
    from skpatchcore.inspection import check_matplotlib

    output.mkdir(parents=True, exist_ok=True)
    click.echo("Learning what good surfaces look like ...", err=True)
    found = run_demo(random_state)
    click.echo(format_table([found.metrics], COLUMNS))
    try:
        check_matplotlib()
    except ImportError as error:
        click.echo(f"No sheet of pictures was drawn. {error}", err=True)
    else:
        draw_sheet(found, output / "demo_sheet.png")
        click.echo(f"\nPictures, anomaly maps and masks: {output / 'demo_sheet.png'}")
    click.echo(
        "Next, your own pictures:  skpatchcore fit FOLDER_OF_GOOD --model part.skpc\n"
        "                          skpatchcore score --model part.skpc NEW_PICTURES"
    )


@main.command()
@click.argument("data_root", type=click.Path(exists=True, file_okay=False))
@_option(
    "--categories",
    metavar="A,B",
    type=_CommaSeparated(),
    help="Categories, each a folder in DATA_ROOT.  [default: all]",
)
@_option(
    "--output",
    type=_NEW_FOLDER,
    default="skpatchcore_benchmark",
    help="Folder for results.csv and results.json.",
)
@_detector_options
@_common_options
def benchmark(data_root, categories, output, **settings):
    """Measure on data sets like MVTec AD.

    DATA_ROOT holds a folder for each category, with train/good, test/<kind> and
    ground_truth/<kind>. For each, a detector is fitted and its results are written.
    """
    from skpatchcore import _benchmark

    detector = _benchmark.build_detector(settings)
    categories = _benchmark.choose_categories(data_root, categories)
    _benchmark.try_settings(detector, data_root, categories)
    settings = {"data_root": data_root, "categories": categories} | dict(
        sorted(settings.items())
    )
    rows, failures = _evaluate(detector, data_root, categories, output, settings)
    if rows:
        click.echo(_benchmark.format_table([*rows, _benchmark.mean_row(rows)]))
        click.echo(f"\nResults: {output / 'results.csv'}, {output / 'results.json'}")
    if failures:
        listed = "".join(f"\n  {name}: {text}" for name, text in failures.items())
        raise click.ClickException(
            f"{len(failures)} of {len(categories)} categories failed:{listed}"
        )


def _evaluate(detector, data_root, categories, output, settings):
    """Evaluate one category after the other; return rows, and what failed."""
    from sklearn.base import clone

    from skpatchcore._benchmark import evaluate_category, write_results

    rows, failures = [], {}
    for i, category in enumerate(categories, 1):
        click.echo(f"[{i}/{len(categories)}] {category} ...", err=True)
        try:
            row = evaluate_category(clone(detector), data_root, category)
        # Whatever it is: hours of other categories are not to be lost to it.
        except Exception as error:
            failures[category] = _describe(error)
            click.echo(f"  failed: {failures[category]}", err=True)
            continue
        rows.append(row)
        write_results(output, rows, settings)
        click.echo(f"  {_summarize(row)}", err=True)
    return rows, failures


def _summarize(row: dict) -> str:
    parts = [f"image AUROC {row['image_auroc']:.3f}"]
    if row["pixel_auroc"] is not None:
        parts.append(f"pixel AUROC {row['pixel_auroc']:.3f}")
        parts.append(f"AUPRO {row['aupro']:.3f}")
    seconds = f"{row['fit_seconds']:.1f} s + {row['predict_seconds']:.1f} s"
    return f"{', '.join(parts)}  ({seconds})"


@main.command()
@click.argument("train", nargs=-1, required=True, type=click.Path(exists=True))
@_option("--model", type=_NEW_FILE, required=True, help="File to write, *.skpc.")
@_option(
    "--include-backbone",
    is_flag=True,
    help="Store the network's weights in the model as well.",
)
@_option(
    "--contamination",
    metavar="auto|SHARE",
    type=_KeywordOr(click.FloatRange(0, 0.5, min_open=True), "auto"),
    default="auto",
    help="Share of the training pictures to put beyond the threshold; auto: 0.01.",
)
@_detector_options
@_common_options
def fit(train, model, include_backbone, **settings):
    """Learn from pictures of good parts.

    TRAIN are pictures, or folders: either with pictures of good parts directly inside,
    or with train/good. What was learned is written to a model file.
    """
    from skpatchcore._benchmark import build_detector
    from skpatchcore.persistence import save

    if not model.parent.is_dir():
        raise click.BadParameter(
            f"The folder {model.parent} does not exist.", param_hint="'--model'"
        )
    pictures, target = _gather_training(train)
    click.echo(f"Learning from {target.count(1)} pictures ...", err=True)
    started = time.perf_counter()
    detector = build_detector(settings).fit(pictures, target)
    seconds = time.perf_counter() - started
    save(detector, model, include_backbone=include_backbone)
    n_kept, n_features = detector.memory_bank_.bank_.shape
    click.echo(
        f"Kept {n_kept} patches of {n_features} features after {seconds:.1f} s; "
        f"pictures that score below {detector.offset_:.4g} are anomalous.\n"
        f"Model: {model} ({model.stat().st_size / 1e6:.1f} MB)"
    )


def _gather_training(paths: Sequence[str]) -> tuple[list[str], list[int]]:
    """Return pictures and labels of files and folders."""
    from skpatchcore.datasets import load_image_folder

    pictures, target = [], []
    for path in paths:
        if os.path.isdir(path):
            data, labels = load_image_folder(path, subset="train", return_X_y=True)
            pictures += data.tolist()
            target += labels.tolist()
        else:
            pictures.append(path)
            target.append(1)
    return pictures, target


@main.command()
@click.argument("pictures", nargs=-1, required=True, type=click.Path(exists=True))
@_option("--model", type=_EXISTING_FILE, required=True, help="File that fit wrote.")
@_option("--output", type=_NEW_FILE, help="CSV file.  [default: standard output]")
@_option(
    "--overlays",
    type=_NEW_FOLDER,
    help="Folder for PNG files of the pictures with their anomaly maps laid over.",
)
@_option(
    "--masks",
    type=_NEW_FOLDER,
    help="Folder for PNG files that are white where a picture is anomalous.",
)
@_option(
    "--weights",
    type=_EXISTING_FILE,
    help="Local weights file of the network, if not the one of the fit.",
)
@_device_option
@_common_options
def score(pictures, model, output, overlays, masks, weights, device):
    """Score new pictures.

    PICTURES are files, or folders that are searched with all their subfolders. The
    result is a CSV of path, score, decision and label. Scores and decisions are higher
    for more normal pictures; a decision below 0 is anomalous.
    """
    from skpatchcore._benchmark import replace_text
    from skpatchcore.persistence import load

    pictures = _find_pictures(pictures)
    names = {folder: _png_paths(pictures, folder) for folder in (overlays, masks)}
    detector = load(model, weights=weights, device=device)
    seen = _inspect(detector, pictures)
    table = _as_csv(detector, pictures, seen)
    if output is None:
        click.echo(table, nl=False)
    else:
        replace_text(output, table)
    if overlays:
        _write_overlays(detector, pictures, seen, names[overlays])
    if masks:
        _write_masks(detector, seen, names[masks])


def _find_pictures(paths: Sequence[str]) -> list[str]:
    """Return files as they are and the pictures in folders, each once."""
    from skpatchcore.datasets._listing import list_folders, list_pictures

    def search(folder: Path) -> Iterator[Path]:
        yield from list_pictures(folder)
        for subfolder in list_folders(folder):
            yield from search(subfolder)

    found = []
    for path in paths:
        inside = map(str, search(Path(path))) if os.path.isdir(path) else [path]
        before = len(found)
        found.extend(inside)
        if len(found) == before:
            raise ValueError(f"Found no pictures in {path} or its subfolders.")
    return list(dict.fromkeys(found))


def _png_paths(pictures: Sequence[str], folder: Path | None) -> list[Path]:
    """Return a file in `folder` for each picture, arranged as the pictures are."""
    if folder is None:
        return []
    sources = [Path(os.path.abspath(picture)) for picture in pictures]
    root = os.path.commonpath([source.parent for source in sources])
    relative = [source.relative_to(root) for source in sources]
    counts = Counter(path.with_suffix(".png") for path in relative)
    names = [
        path.with_suffix(".png")
        if counts[path.with_suffix(".png")] == 1
        else path.with_name(f"{path.name}.png")
        for path in relative
    ]
    paths = [Path(os.path.abspath(folder)) / name for name in names]
    lost = set(paths) & set(sources)
    if lost:
        raise ValueError(
            f"{min(lost)} would be overwritten; choose another folder than {folder}."
        )
    return paths


def _inspect(detector, pictures: Sequence[str]) -> list:
    """Return what the detector sees in each picture, in their order."""
    from tqdm import tqdm

    from skpatchcore._images import check_images

    # With disable=None, only a terminal gets to see the bar.
    with tqdm(total=len(pictures), desc="pictures", disable=None) as bar:
        found = []
        for seen in detector._inspect(check_images(pictures)):
            found.append(seen)
            bar.update()
    return sorted(found, key=lambda seen: seen.index)


def _as_csv(detector, pictures: Sequence[str], found: Sequence) -> str:
    import csv
    import io

    buffer = io.StringIO()
    table = csv.writer(buffer, lineterminator="\n")
    table.writerow(["path", "score", "decision", "label"])
    for path, seen in zip(pictures, found, strict=True):
        decision = seen.score - detector.offset_
        label = "normal" if decision >= 0 else "anomalous"
        table.writerow([path, float(seen.score), float(decision), label])
    return buffer.getvalue()


def _write_overlays(detector, pictures, found, paths: Sequence[Path]) -> None:
    from skpatchcore._images import check_images
    from skpatchcore.inspection import blend_overlay, color_limits

    images = check_images(pictures)
    limits = color_limits(
        detector.map_threshold_, [seen.patch_scores for seen in found]
    )
    for seen, path in zip(found, paths, strict=True):
        anomaly_map = detector._map(seen, "original")
        _save_png(blend_overlay(images[seen.index], anomaly_map, limits), path)


def _write_masks(detector, found, paths: Sequence[Path]) -> None:
    for seen, path in zip(found, paths, strict=True):
        mask = detector._map(seen, "original") > detector.map_threshold_
        _save_png(mask.astype("uint8") * 255, path)


def _save_png(pixels, path: Path) -> None:
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


if __name__ == "__main__":
    main(prog_name="skpatchcore")
