import csv
import io
import json
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import click
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image, ImageColor
from safetensors.torch import save_file
from sklearn.utils._param_validation import StrOptions

from skpatchcore import (
    CoresetSampler,
    PatchCoreDetector,
    PatchFeatureTransformer,
    _benchmark,
)
from skpatchcore._backbones._backbone import load_backbone
from skpatchcore._benchmark._evaluate import Evaluation
from skpatchcore._benchmark._tables import COLUMNS
from skpatchcore._cli import _commands as cli
from skpatchcore._cli import _demo, _fit_command, _messages
from skpatchcore._cli._training_images import gather_images
from skpatchcore.datasets import make_surface_defects
from skpatchcore.inspection._colors import PREDICTED_MASK, TRUE_MASK

SMALL = ("--backbone", "resnet18", "--weights", "random", "--layers", "layer1,layer2")
SMALL = (*SMALL, "--image-size", "64", "--coreset-fraction", "100")


def run(*args):
    return CliRunner().invoke(cli.main, [str(arg) for arg in args])


def save(pixels, path: Path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def write_category(folder: Path, texture: str, masks: bool):
    surfaces = make_surface_defects(
        5, 2, 3, texture=texture, defects=["spot"], image_size=64, random_state=0
    )
    for i, kind in enumerate(surfaces.defect_types):
        save(surfaces.data[i], folder / surfaces.split[i] / kind / f"{i:03}.png")
        if masks and kind != "good":
            mask = surfaces.masks[i].astype(np.uint8) * 255
            save(mask, folder / "ground_truth" / kind / f"{i:03}_mask.png")


@pytest.fixture(scope="module")
def data_root(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    write_category(root / "wood", "wood", masks=True)
    write_category(root / "steel", "brushed", masks=False)
    return root


@pytest.fixture(scope="module")
def model(data_root, tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "wood.skpc"
    result = run("fit", data_root / "wood", "--model", path, *SMALL)
    assert result.exit_code == 0, result.output
    assert "Kept 100 patches of 192 features" in result.stdout
    return path


def read_results(folder: Path):
    with open(folder / "results.csv", newline="") as file:
        rows = {row["category"]: row for row in csv.DictReader(file)}
    return rows, json.loads((folder / "results.json").read_text())


# Help and errors --------------------------------------------------------------------


def test_help_names_the_commands_and_their_options():
    text = run("--help").stdout
    assert all(name in text for name in ("demo", "benchmark", "fit", "score"))
    assert "--coreset-fraction" in run("fit", "--help").stdout
    assert run("--version").stdout.startswith("skpatchcore, version ")


def test_an_error_is_one_line_without_the_debug_option(tmp_path):
    result = run("benchmark", tmp_path)
    assert result.exit_code == 1
    assert result.stderr.startswith(f"Error: Found no category in {tmp_path}")
    assert result.stderr.count("\n") == 1
    assert isinstance(run("benchmark", tmp_path, "--debug").exception, ValueError)


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ValueError("Too big."), "Error: Too big.\n"),
        (PermissionError(13, "Not allowed", "a.png"), "Error: a.png: Not allowed\n"),
        (KeyError("a"), "Error: KeyError: 'a' (--debug shows where)\n"),
    ],
)
def test_errors_keep_their_own_message(monkeypatch, tmp_path, error, text):
    def fail(settings):
        raise error

    monkeypatch.setattr(_benchmark, "build_detector", fail)
    result = run("benchmark", tmp_path)
    assert (result.exit_code, result.stderr) == (1, text)


def test_warnings_are_shown_without_source_code(monkeypatch, tmp_path):
    def warn(settings):
        warnings.warn("Mind the gap.", stacklevel=1)
        raise ValueError

    monkeypatch.setattr(_benchmark, "build_detector", warn)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert run("benchmark", tmp_path).stderr.startswith("Warning: Mind the gap.\n")


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (["--backbone", "resnt18"], "resnet18"),
        (["--backbone", "resnet18", "--weights", "nothing.pth"], "nothing.pth"),
        ([*SMALL, "--layers", "layer2,layer9"], "layer9"),
        ([*SMALL, "--patch-size", "2"], "patch_size must be odd"),
        ([*SMALL, "--crop-size", "65"], "crop_size"),
        ([*SMALL, "--categories", "wood,stel"], "Did you mean 'steel'?"),
        ([*SMALL, "--device", "abacus"], "abacus"),
    ],
)
def test_settings_that_cannot_work_end_a_benchmark_at_once(data_root, args, text):
    result = run("benchmark", data_root, *args)
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: ")
    assert text in result.stderr
    assert "[1/2]" not in result.stderr


# Options ----------------------------------------------------------------------------


@pytest.fixture
def settings_of(monkeypatch, tmp_path):
    """Return a function from options to the settings that the command derives."""

    def parse(*args):
        seen = []

        def record(settings):
            seen.append(settings)
            raise ValueError("Seen.")

        monkeypatch.setattr(_benchmark, "build_detector", record)
        result = run("benchmark", tmp_path, *args)
        assert seen, result.output
        return seen[0]

    return parse


build_detector = _benchmark.build_detector


def test_defaults_are_those_of_the_estimators(settings_of):
    settings = settings_of()
    built = build_detector(settings).get_params()
    default = PatchCoreDetector(PatchFeatureTransformer(), CoresetSampler())
    expected = {**default.get_params(), "random_state": 0}
    same = [name for name in expected if name not in ("features", "sampler")]
    assert {n: built[n] for n in same} == {n: expected[n] for n in same}


@pytest.mark.parametrize(
    ("option", "estimator"),
    [
        ("metric", PatchCoreDetector),
        ("algorithm", PatchCoreDetector),
        ("precision", PatchFeatureTransformer),
        ("coreset_method", CoresetSampler),
        ("outlier_filter", PatchCoreDetector),
        ("foreground", PatchCoreDetector),
        ("augmentation", PatchCoreDetector),
    ],
)
def test_choices_are_those_of_the_estimators(option, estimator):
    (choice,) = [p for p in cli.benchmark.params if p.name == option]
    allowed = estimator._parameter_constraints[option.removeprefix("coreset_")]
    (words,) = [kind for kind in allowed if isinstance(kind, StrOptions)]
    kind = choice.type
    while hasattr(kind, "inner"):
        kind = kind.inner
    assert set(kind.choices) == words.options


@pytest.mark.parametrize(
    ("option", "text", "value"),
    [
        ("--layers", "layer1, layer2", ("layer1", "layer2")),
        ("--layer-weights", "1,0.5", (1.0, 0.5)),
        ("--layer-weights", "auto", "auto"),
        ("--layer-weights", "none", None),
        ("--image-size", "320", 320),
        ("--image-size", "256,320", (256, 320)),
        ("--crop-size", "224,224", (224, 224)),
        ("--crop-size", "None", None),
        ("--coreset-fraction", "0.25", 0.25),
        ("--coreset-fraction", "1.0", 1.0),
        ("--coreset-fraction", "1000", 1000),
        ("--coreset-projection-dim", "none", None),
        ("--descriptor", "1024", 1024),
        ("--descriptor", "concat", "concat"),
        ("--reduction", "0.01", 0.01),
        ("--reweight", "9", 9),
        ("--position-window", "5", 5),
        ("--position-window", "5,3", (5, 3)),
        ("--outlier-filter", "lof", "lof"),
        ("--outlier-filter", "none", None),
        ("--augmentation", "rotate,brightness", ("rotate", "brightness")),
        ("--foreground", "auto", "auto"),
        ("--device", "cuda:1", "cuda:1"),
    ],
)
def test_options_become_parameters(settings_of, option, text, value):
    name = option.strip("-").replace("-", "_")
    parsed = settings_of(option, text)[name]
    assert parsed == value
    assert type(parsed) is type(value)


@pytest.mark.parametrize(
    ("args", "config", "layers"),
    [
        (("--backbone", "gabor"), "", ("fine", "coarse")),
        (("--backbone", "gabor", "--layers", "fine"), "", ("fine",)),
        (("--layers", "fine", "--backbone", "gabor"), "", ("fine",)),
        (("--backbone", "gabor", "--layers", "layer2,layer3"), "", None),
        (("--backbone", "resnet18"), "", None),
        ((), "backbone: gabor", ("fine", "coarse")),
        (("--backbone", "gabor"), "layers: [coarse]", ("coarse",)),
        (("--backbone", "resnet18"), "backbone: gabor", None),
    ],
)
def test_layers_not_given_are_those_of_the_backbone(
    settings_of, tmp_path, args, config, layers
):
    if config:
        path = tmp_path / "config.yaml"
        path.write_text(config)
        args = ("--config", path, *args)
    assert settings_of(*args)["layers"] == (layers or ("layer2", "layer3"))


@pytest.mark.parametrize(
    ("option", "text", "hint"),
    [
        ("--image-size", "1,2,3", "neither N nor HEIGHT,WIDTH"),
        ("--image-size", "large", "'none'"),
        ("--image-size", "0", "'0'|0 is not in the range"),
        ("--layers", "layer1,", "before or after a comma"),
        ("--layer-weights", "1,b", "'b' is not a valid float; nor is it 'auto'"),
        ("--coreset-fraction", "1", "write 1.0 for all"),
        ("--coreset-fraction", "0.0", "range"),
        ("--metric", "manhattan", "sqeuclidean"),
        ("--n-neighbours", "1", "--n-neighbors"),
    ],
)
def test_wrong_options_are_usage_errors(tmp_path, option, text, hint):
    result = run("benchmark", tmp_path, option, text)
    assert result.exit_code == 2
    assert "Error: " in result.stderr
    assert any(part in result.stderr for part in hint.split("|"))


# Configuration file -----------------------------------------------------------------


@pytest.fixture
def config(tmp_path):
    def write(text):
        path = tmp_path / "config.yaml"
        path.write_text(text)
        return path

    return write


def test_a_config_sets_options_and_the_command_line_wins(settings_of, config):
    path = config(
        "layers: [layer1, layer2]\n"
        "layer_weights: [1, 0.5]\n"
        "crop-size: [224, 240]\n"
        "image-size: 300\n"
        "coreset-fraction: 0.5\n"
        "reweight: null\n"
        "categories: nut,bolt\n"
        "n-neighbors: 3\n"
        "metric: cosine\n"
    )
    settings = settings_of("--config", path, "--n-neighbors", "5")
    assert settings["layers"] == ("layer1", "layer2")
    assert settings["layer_weights"] == (1.0, 0.5)
    assert settings["crop_size"] == (224, 240)
    assert settings["image_size"] == 300
    assert settings["coreset_fraction"] == 0.5
    assert settings["reweight"] is None
    assert settings["metric"] == "cosine"
    assert settings["n_neighbors"] == 5


def test_a_config_may_hold_what_is_required(data_root, config, tmp_path):
    path = config(f"model: {tmp_path / 'missing' / 'a.skpc'}\n")
    result = run("fit", data_root / "wood", "--config", path)
    assert f"The folder {tmp_path / 'missing'} does not exist" in result.stderr


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("n-neighbours: 1", "'n-neighbours'|Did you mean n_neighbors?"),
        ("data-root: a", "not an option of"),
        ("config: a", "not an option of"),
        ("n-neighbors: 1\nn_neighbors: 2", "twice"),
        ("n-neighbors: [1, 2]", "takes one value"),
        ("weights: {a: 1}", "takes one value"),
        ("n-neighbors: many", "not a valid integer"),
        ("- a", "option: value|list"),
        ("", "option: value"),
        ("a: [", "is not a YAML file"),
    ],
)
def test_mistakes_in_a_config_are_named(tmp_path, config, text, hint):
    result = run("benchmark", tmp_path, "--config", config(text))
    assert result.exit_code == 2
    assert all(part in result.stderr for part in hint.split("|"))


def test_a_config_that_does_not_exist_is_named(tmp_path):
    result = run("benchmark", tmp_path, "--config", tmp_path / "no.yaml")
    assert result.exit_code == 2
    assert "no.yaml" in result.stderr


# benchmark --------------------------------------------------------------------------


def test_a_benchmark_writes_a_row_for_each_category_and_their_mean(data_root, tmp_path):
    result = run("benchmark", data_root, *SMALL, "--output", tmp_path / "new" / "out")
    assert result.exit_code == 0, result.output
    rows, report = read_results(tmp_path / "new" / "out")
    assert list(rows) == ["steel", "wood", "mean"]
    assert tuple(rows["wood"]) == (
        *("category", "n_train", "n_test", "image_auroc", "image_ap", "image_f1"),
        *("pixel_auroc", "pixel_ap", "pixel_f1", "aupro"),
        *("fit_seconds", "predict_seconds"),
    )
    assert (rows["wood"]["n_train"], rows["wood"]["n_test"]) == ("5", "5")
    assert rows["steel"]["aupro"] == ""
    assert report["results"][0]["aupro"] is None
    assert rows["mean"]["aupro"] == rows["wood"]["aupro"]
    assert report["settings"]["image_size"] == 64
    assert report["settings"]["categories"] == ["steel", "wood"]
    assert "[2/2] wood ..." in result.stderr
    assert result.stdout.startswith("category")


def test_a_category_that_fails_does_not_stop_the_others(data_root, tmp_path):
    shutil.copytree(data_root, tmp_path / "data")
    broken = tmp_path / "data" / "steel" / "train" / "good" / "000.png"
    broken.write_bytes(broken.read_bytes()[:500])
    result = run("benchmark", tmp_path / "data", *SMALL, "--output", tmp_path)
    assert result.exit_code == 1
    assert "Error: 1 of 2 categories failed:\n  steel: Could not read" in result.stderr
    assert str(broken) in result.stderr
    rows, _ = read_results(tmp_path)
    assert list(rows) == ["wood", "mean"]


def test_an_interrupted_benchmark_keeps_what_it_has(data_root, tmp_path, monkeypatch):
    def evaluate(detector, data_root, category):
        if category == "wood":
            raise KeyboardInterrupt
        row = {"category": category, **dict.fromkeys(COLUMNS[1:], 0.5)}
        return Evaluation(row, detector, None, None, None)

    monkeypatch.setattr(_benchmark, "evaluate_category", evaluate)
    result = run("benchmark", data_root, *SMALL, "--output", tmp_path)
    assert result.exit_code == 130
    assert result.stderr.endswith("Interrupted\n")
    assert list(read_results(tmp_path)[0]) == ["steel", "mean"]


def test_a_benchmark_on_real_images_reaches_what_is_known(assets, tmp_path):
    result = run(
        "benchmark",
        assets / "data" / "mvtec_ad_reduced",
        *("--categories", "hazelnut_reduced", "--output", tmp_path),
        *("--backbone", "resnet18", "--crop-size", "224", "--coreset-fraction", "0.01"),
        *("--weights", assets / "weights" / "resnet18_tv_in1k_trunk.safetensors"),
    )
    assert result.exit_code == 0, result.output
    rows, _ = read_results(tmp_path)
    assert float(rows["hazelnut_reduced"]["pixel_auroc"]) >= 0.988


# fit and score ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def weights_file(tmp_path_factory):
    network = load_backbone(
        *("resnet18", ("layer1",)),
        **{"weights": "random", "seed": 5, "device": "cpu", "precision": "auto"},
    )
    state = network.module.state_dict()
    path = tmp_path_factory.mktemp("weights") / "own.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, path)
    return path


@pytest.mark.parametrize("stored", [False, True])
def test_fit_says_that_score_needs_the_weights(
    data_root, tmp_path, weights_file, stored
):
    options = ["--backbone", "resnet18", "--layers", "layer1", "--image-size", "32"]
    result = run(
        *("fit", data_root / "wood", "--model", tmp_path / "m.skpc", *options),
        *("--weights", weights_file, *["--include-backbone"] * stored),
    )
    assert result.exit_code == 0, result.output
    assert (f"pass --weights {weights_file} to score" in result.stdout) is not stored


def test_a_calibrated_model_needs_its_weights_too(data_root, tmp_path, weights_file):
    options = ["--backbone", "resnet18", "--layers", "layer1", "--image-size", "32"]
    model = tmp_path / "m.skpc"
    train, test = (data_root / "wood" / name for name in ("train", "test"))
    result = run(
        *("fit", train / "good", "--model", model, *options, "--alpha", "0.2"),
        *("--weights", weights_file),
    )
    assert result.exit_code == 0, result.output
    result = run("score", test, "--model", model)
    assert result.exit_code == 1
    assert "--weights" in result.stderr
    result = run("score", test, "--model", model, "--weights", weights_file)
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("path,score,decision,p_value,anomaly_score,label,")


def test_help_says_when_score_needs_the_weights():
    words = " ".join(run("score", "--help").stdout.split())
    assert "Always required if fit used --weights with a file" in words


def read_scores(text: str):
    return list(csv.DictReader(io.StringIO(text)))


def test_scores_are_those_of_the_detector(data_root, model, tmp_path):
    from skpatchcore.persistence import load

    folder = data_root / "wood" / "test"
    result = run(
        "score", folder, "--model", model, "--output", tmp_path / "a" / "b.csv"
    )
    assert (result.exit_code, result.stdout) == (0, ""), result.output
    rows = read_scores((tmp_path / "a" / "b.csv").read_text())
    paths = sorted(folder.rglob("*.png"))
    assert [row["path"] for row in rows] == [str(path) for path in paths]
    detector = load(model)
    assert [float(row["score"]) for row in rows] == list(detector.score_samples(paths))
    decisions = detector.decision_function(paths)
    assert [float(row["decision"]) for row in rows] == list(decisions)
    labels = np.where(detector.predict(paths) == 1, "normal", "anomalous")
    assert [row["label"] for row in rows] == list(labels)


def test_scores_go_to_standard_output_each_image_once(data_root, model):
    image = data_root / "wood" / "test" / "good" / "005.png"
    result = run("score", image, image.parent, "--model", model)
    rows = read_scores(result.stdout)
    assert list(rows[0]) == ["path", "score", "decision", "label", "sha256", "run"]
    assert [Path(row["path"]).name for row in rows] == ["005.png", "006.png"]


def test_overlays_and_masks_are_as_large_as_their_images(data_root, model, tmp_path):
    source = data_root / "wood" / "test" / "spot" / "007.png"
    with Image.open(source) as image:
        image_again = tmp_path / "new" / "sub" / "wide.png"
        image_again.parent.mkdir(parents=True)
        image.resize((90, 70)).save(tmp_path / "new" / "wide.jpg")
    shutil.copy(source, image_again)
    shutil.copy(source, tmp_path / "new" / "wide.png")
    result = run(
        *("score", tmp_path / "new", "--model", model),
        *("--overlays", tmp_path / "o", "--masks", tmp_path / "m"),
    )
    assert result.exit_code == 0, result.output
    assert len(read_scores(result.stdout)) == 3
    for folder in ("o", "m"):
        sizes = {}
        for path in (tmp_path / folder).rglob("*.png"):
            with Image.open(path) as written:
                name = path.relative_to(tmp_path / folder).as_posix()
                sizes[name] = (written.size, written.mode)
        mode = "RGB" if folder == "o" else "L"
        assert sizes == {
            "wide.jpg.png": ((90, 70), mode),
            "wide.png": ((64, 64), mode),
            "sub/wide.png": ((64, 64), mode),
        }
    mask = np.asarray(Image.open(tmp_path / "m" / "sub" / "wide.png"))
    assert set(np.unique(mask)) <= {0, 255}


def test_overlays_never_replace_the_images(data_root, model, tmp_path):
    shutil.copytree(data_root / "wood" / "test", tmp_path / "test")
    result = run(
        *("score", tmp_path / "test", "--model", model, "--overlays", tmp_path / "test")
    )
    assert result.exit_code == 2
    assert "so the next run would read these files as images" in result.stderr


def test_a_model_of_a_few_files_can_be_fitted(data_root, tmp_path):
    images = sorted((data_root / "wood" / "train" / "good").iterdir())[:2]
    result = run(
        *("fit", *images, "--model", tmp_path / "a.skpc", *SMALL),
        *("--contamination", "0.2", "--include-backbone"),
    )
    assert result.exit_code == 0, result.output
    assert "Fitting on 2 images" in result.stderr
    assert (tmp_path / "a.skpc").stat().st_size > 1e6


def test_defective_training_images_are_not_learned_from(data_root, tmp_path):
    shutil.copytree(data_root / "wood" / "train", tmp_path / "train")
    shutil.copytree(data_root / "wood" / "test" / "spot", tmp_path / "train" / "spot")
    labels = [i.label for i in gather_images([str(tmp_path), str(tmp_path / "x.png")])]
    assert (labels.count(1), labels.count(-1)) == (6, 3)


def test_what_cannot_be_scored_is_named(data_root, model, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no image")
    result = run("score", tmp_path, "--model", model)
    assert result.exit_code == 1
    assert "broken.png" in result.stderr
    (tmp_path / "empty").mkdir()
    result = run("score", tmp_path / "empty", "--model", model)
    assert f"Found no images in {tmp_path / 'empty'}" in result.stderr
    result = run("score", tmp_path / "none.png", "--model", model)
    assert result.exit_code == 2
    result = run("score", tmp_path, "--model", tmp_path / "broken.png")
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)


# demo -------------------------------------------------------------------------------


def test_the_demo_runs_as_a_program_without_any_data(tmp_path):
    root = Path(cli.__file__).parents[2]
    paths = filter(None, [str(root), os.environ.get("PYTHONPATH")])
    result = subprocess.run(
        [sys.executable, "-m", "skpatchcore", "demo", "--output", "sheets"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert "AUPRO" in result.stdout
    assert "skpatchcore fit" in result.stdout
    with Image.open(tmp_path / "sheets" / "demo_sheet.png") as sheet:
        assert sheet.height > 1000


@pytest.fixture
def quick_demo(monkeypatch):
    surfaces = {**_demo.SURFACES, "n_train": 3, "n_test_good": 1, "n_test_defective": 1}
    monkeypatch.setattr(_demo, "SURFACES", surfaces)
    monkeypatch.setattr(_demo, "N_HELD_OUT", 1)


def test_the_demo_runs_without_matplotlib(tmp_path, monkeypatch, quick_demo):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    result = run("demo", "--output", tmp_path)
    assert result.exit_code == 0, result.output
    assert "AUPRO" in result.stdout
    assert 'pip install "skpatchcore[plot]"' in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_demo_shows_the_good_image_first():
    kinds = np.array(["crack", "crack", "dent", "good", "wear"], dtype=object)
    assert _demo.choose_images(kinds, 3) == [3, 0, 2]


def test_the_sheet_in_the_documentation_has_the_colours_of_outlines():
    path = Path(cli.__file__).parents[2] / "docs" / "images" / "demo_sheet.png"
    with Image.open(path) as sheet:
        colors = np.array([color for _, color in sheet.convert("RGB").getcolors(2**24)])
    for outline in (TRUE_MASK, PREDICTED_MASK):
        distances = np.abs(colors - ImageColor.getrgb(outline)).max(axis=1)
        assert distances.min() < 12


def test_commands_can_be_documented():
    assert all(
        isinstance(c, click.Command) and c.help for c in cli.main.commands.values()
    )


# Progress ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("terminal", "options", "shown"),
    [
        (True, (), True),
        (False, (), False),
        (False, ("--verbose",), True),
    ],
)
def test_progress_bars_are_shown_in_terminals_and_on_request(
    data_root, tmp_path, monkeypatch, terminal, options, shown
):
    monkeypatch.setattr(_fit_command, "progress_level", lambda: int(terminal))
    folder, model = data_root / "wood", tmp_path / "a.skpc"
    result = run("fit", folder, "--model", model, *SMALL, *options)
    assert result.exit_code == 0, result.output
    for name in ("images", "coreset", "training scores"):
        assert (f"{name}: 100%" in result.stderr) == shown
    assert "%|" not in result.stdout


def test_progress_is_shown_if_standard_error_is_a_terminal(monkeypatch):
    terminal = io.StringIO()
    monkeypatch.setattr(sys, "stderr", terminal)
    assert _messages.progress_level() == 0
    terminal.isatty = lambda: True
    assert _messages.progress_level() == 1
