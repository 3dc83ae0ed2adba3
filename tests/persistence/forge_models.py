"""Load forged model files under an audit hook, as a script that prints the outcomes.

    python tests/persistence/forge_models.py N_CASES SEED FOLDER

Audit hooks cannot be removed, so this script has its own process. Each case changes one
or two values in the description of a model to hostile ones, and updates the checksums.
Then the model is loaded, used in all ways, and saved. It is a violation to open a file
that is not needed for this, to unpickle, to start a process, or to use the network.
"""

import contextlib
import copy
import hashlib
import inspect as inspection
import json
import os
import pickle
import random
import resource
import signal
import sys
import warnings
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pandas
import safetensors.torch
import torch
from sklearn.decomposition import PCA, IncrementalPCA, TruncatedSVD
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import KFold, LeaveOneOut, StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import Normalizer, StandardScaler
from sklearn.random_projection import SparseRandomProjection

from skpatchcore import (
    CoresetSampler,
    PatchCoreDetector,
    PatchCoreEnsemble,
    PatchFeatureTransformer,
    PatchMemoryBank,
)
from skpatchcore._detectors._find import has_maps
from skpatchcore._images._input import Images
from skpatchcore.calibration import ConformalDetector, TunedThresholdDetector
from skpatchcore.model_selection import OneClassKFold
from skpatchcore.persistence import ModelFileError, load, save
from skpatchcore.persistence._schema import (
    ESTIMATORS,
    FITTED,
    OPTIONAL,
    PARAMS,
    SPLITTERS,
)

CLASSES = ESTIMATORS | {cls.__name__: cls for cls in SPLITTERS}
SECONDS = 30
EXTRA_BYTES = 4 * 2**30


# Models ------------------------------------------------------------------------------


def images(n, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, 16, 16, 3), np.uint8)


NEW = images(2, seed=1)


def gabor(projection=None, **params):
    features = PatchFeatureTransformer(
        "gabor", ("fine",), image_size=16, projection=projection
    )
    return PatchCoreDetector(features, **{"random_state": 0} | params)


def bank():
    X = np.random.default_rng(0).normal(size=(30, 4))
    detector = PatchMemoryBank(CoresetSampler(0.5), reweight=2, random_state=0)
    return detector.fit(pandas.DataFrame(X, columns=list("abcd")))


def make_models(folder: Path) -> dict:
    X, fitted = images(8), gabor().fit(images(8))
    scaled = make_pipeline(StandardScaler(), Normalizer(), PCA(3))
    weights = folder / "own.safetensors"
    torch.manual_seed(0)
    state = {"conv1.weight": torch.rand(64, 3, 7, 7), "bn1.weight": torch.ones(64)}
    for name in ("bias", "running_mean", "running_var"):
        state[f"bn1.{name}"] = torch.ones(64)
    safetensors.torch.save_file(state, weights)
    network = PatchFeatureTransformer(
        "resnet18", ("maxpool",), weights=weights, image_size=16
    )
    members = [("fine", gabor()), ("coarse", gabor()), ("none", "drop")]
    return {
        "plain": gabor(
            augmentation=["flip"], position_window=(1, 3), outlier_filter="nearest"
        ).fit(X),
        "gaussian": gabor(4, metric="cosine", contamination=0.1).fit(X),
        "sparse": gabor(SparseRandomProjection(5)).fit(X),
        "pca": gabor(PCA(4, svd_solver="arpack", random_state=0)).fit(X),
        "incremental": gabor(IncrementalPCA(4), n_neighbors=2).fit(X),
        "svd": gabor(TruncatedSVD(4), smoothing=1, foreground="auto").fit(X),
        "pipeline": gabor(scaled, reduction=0.5).fit(X),
        "network": PatchCoreDetector(network, random_state=0).fit(X),
        "conformal": ConformalDetector(fitted, alpha=0.2, cv=KFold(3)).fit(X),
        "leave one out": ConformalDetector(
            gabor(), alpha=0.2, cv=LeaveOneOut(), method="refit"
        ).fit(X),
        "frozen features": PatchCoreDetector(
            FrozenEstimator(fitted.features_), random_state=0
        ).fit(X),
        "frozen": ConformalDetector(FrozenEstimator(fitted), alpha=0.2).fit(X),
        "tuned": TunedThresholdDetector(gabor(), cv=StratifiedKFold(2)).fit(
            X, [1] * 6 + [-1] * 2
        ),
        "one class": TunedThresholdDetector(
            gabor(), cv=OneClassKFold(2, outliers="split")
        ).fit(X, [1] * 6 + [-1] * 2),
        "ensemble": PatchCoreEnsemble(members, cv=2, random_state=0).fit(X),
        "bank": bank(),
    }


class Model:
    """The members of a saved detector, and what to score with it."""

    def __init__(self, name: str, detector, path: Path):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            save(detector, path, include_backbone=name == "network")
        with zipfile.ZipFile(path) as archive:
            self.members = {n: archive.read(n) for n in archive.namelist()}
        self.manifest = json.loads(self.members.pop("model.json"))
        self.name = name
        self.new = NEW if name != "bank" else np.ones((2, 4))

    def write(self, manifest: dict, path: Path) -> None:
        """Write a file with valid checksums."""
        described = {
            n: {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
            for n, data in self.members.items()
        }
        text = json.dumps({**manifest, "members": described})
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in {"model.json": text, **self.members}.items():
                archive.writestr(name, data)


# Forgery -----------------------------------------------------------------------------


class Trap:
    """Runs code when it is unpickled."""

    def __reduce__(self):
        return print, ("UNPICKLED",)


def lay_traps(folder: Path) -> list[str]:
    """Return paths of files and folders that must stay closed."""
    cache = folder / "shipped_along" / "joblib" / "skpatchcore" / "coresets" / "key"
    cache.mkdir(parents=True)
    trap = pickle.dumps(Trap())
    (cache / "output.pkl").write_bytes(trap)
    (folder / "trap.pth").write_bytes(trap)
    local = folder / "local"
    local.mkdir()
    (local / "config.json").write_text('{"architecture": "resnet18"}')
    (local / "pytorch_model.bin").write_bytes(trap)
    return [
        str(folder / "shipped_along"),
        os.path.relpath(folder / "shipped_along"),
        str(folder / "new_cache"),
        str(folder / "trap.pth"),
        str(folder / "own.safetensors"),
        f"local-dir:{local}",
    ]


def hostile_values(paths: list[str]) -> list:
    names = [*paths, "/etc/passwd", "~/.ssh/id_rsa", "//host/share/x", "\\\\host\\x"]
    names += ["hf-hub:timm/resnet18.a1_in1k", "hf_hub:a/b", "file:///etc/passwd"]
    names += ["http://127.0.0.1:9/x", "timm:resnet18", "resnet18.hf-hub:a/b"]
    names += ["os.system", "lambda x: x", "__class__", "\x00", "x" * 10_000]
    pipeline = {"steps": [{"tuple": ["a", None]}], "memory": paths[0]}
    objects = [{"weights_file": name} for name in (*paths[:4], "x.pth", "..")]
    objects += [{"path": paths[0]}, {"module": "Sequential"}, {"module": paths[0]}]
    objects += [{"names": [paths[0]]}, {"tuple": [paths[0]]}, [paths[0]]]
    objects += [{"array": "x"}, {"csr": {}}, {"splitter": {"class": "KFold"}}]
    objects += [
        {"estimator": {"class": name, "params": params, "fitted": {}}}
        for name, params in [
            ("Pipeline", pipeline),
            ("Memory", {"location": paths[0]}),
            ("BoundedMemory", {"location": paths[0]}),
            ("CoresetSampler", {"memory": paths[0]}),
            ("CoresetSampler", {}),
            ("PatchMemoryBank", {}),
            ("ConformalDetector", {"estimator": None}),
            ("FrozenEstimator", {"estimator": paths[0]}),
            ("FunctionTransformer", {"func": "os.system"}),
        ]
    ]
    numbers = [0, 1, 2, 3, -1, 2**31, 2**62, 10**19, 0.5, 1e-9, 1.0, -1.0, 1e308]
    words = ["auto", "random", "cpu", "cuda", "faiss", "pynndescent", "torch", "max"]
    words += ["euclidean", "cosine", "flip", "drop", "recall", "split", "embedded"]
    words += ["gabor", "resnet18", "resnet10t.c3_in1k", "centered", "full", "", "x"]
    return [*names, *objects, *numbers, *words, True, False, None, [], {}]


def described(tree) -> list[dict]:
    """Return the descriptions of all estimators and splitters in a JSON tree."""
    found = []
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
        if isinstance(value, dict | list):
            found += described(value)
            if key in ("estimator", "splitter") and "params" in value:
                found.append(value)
    return found


def places(description: dict) -> list[tuple[dict, str]]:
    """Return places for a value: attributes of the class, and unknown ones."""
    params, fitted = description["params"], description.get("fitted", {})
    names = {*params, "memory", "device", "engine", "weights", "backbone"}
    names |= {"__class__", "verbose"}
    cls = CLASSES.get(description["class"])
    attributes = {
        *fitted,
        "memory",
        "_network",
        "_index",
        "_position_search",
        "__dict__",
    }
    if cls is not None:
        names |= set(inspection.signature(cls.__init__).parameters) - {"self"}
        attributes |= {*FITTED.get(cls, ()), *OPTIONAL.get(cls, ())}
    found = [(params, name) for name in sorted(names)]
    return found + [(fitted, name) for name in sorted(attributes) if fitted]


def suitable(one: dict, name: str, values: list, rng: random.Random) -> list:
    """Return all values, or in half of the cases only valid ones for this name."""
    cls = CLASSES.get(one["class"])
    kinds = PARAMS.get(cls, {}) | FITTED.get(cls, {}) | OPTIONAL.get(cls, {})
    if rng.random() < 0.5 or name not in kinds:
        return values
    return [value for value in values if kinds[name].accepts(value)] or values


def forge(model: Model, values: list, rng: random.Random) -> tuple[dict, str]:
    """Return a description with one or two changed values, and these values."""
    manifest = copy.deepcopy(model.manifest)
    done = []
    for _ in range(1 + (rng.random() < 0.2)):
        # Classes take turns, so that frequent classes do not hide the others.
        by_class = {}
        for one in described(manifest):
            by_class.setdefault(one["class"], []).append(one)
        one = rng.choice(by_class[rng.choice(sorted(by_class))])
        where, name = rng.choice(places(one))
        # In half of the cases, a parameter of machines or networks.
        special = {"memory", "weights", "backbone", "device", "engine"} & {
            n for _, n in places(one)
        }
        if rng.random() < 0.3 and special:
            where, name = one["params"], rng.choice(sorted(special))
        where[name] = copy.deepcopy(rng.choice(suitable(one, name, values, rng)))
        done.append(f"{one['class']}.{name} = {where[name]!r:.80}")
    return manifest, f"{model.name}: {'; '.join(done)}"


# Watching ----------------------------------------------------------------------------


class Watch:
    """An audit hook that can be switched on and off, and records violations."""

    KINDS = ("os.", "subprocess.", "socket.", "shutil.", "tempfile.", "ctypes.", "pty.")
    # Of packages; METADATA and zips are looked at for their versions.
    CODE = (".py", ".pyc", ".so", ".pyd", ".dll", ".dylib", "METADATA", ".zip")

    def __init__(self, readable: Path, writable: Path):
        self.readable, self.writable = str(readable), str(writable)
        self.seen: list[str] = []
        self.on = False
        self._code = tuple({sys.prefix, sys.base_prefix, str(Path.cwd())})
        sys.addaudithook(self)

    def __call__(self, event: str, args: tuple) -> None:
        if not self.on:
            return
        self.on = False
        try:
            if event == "open":
                expected = self._expects_open(*args)
            elif event == "pickle.find_class":
                expected = False
            else:
                expected = not event.startswith(self.KINDS) or self._expects(
                    event, args
                )
            if not expected:
                self.seen.append(f"{event} {args!r:.200}")
        finally:
            self.on = True

    def _expects_open(self, path, mode, flags) -> bool:
        if isinstance(path, int):
            return True
        path = os.fsdecode(path)
        if path.startswith(self.writable):
            return True
        # For a network of its registry, timm requests weights from the client of the
        # Hub, which looks into its own folder.
        if path.startswith(os.environ["HF_HOME"]) and mode in ("r", "rb"):
            return True
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            return False
        # Code is imported at first use, and one network comes with the package.
        is_code = path.endswith(self.CODE) and path.startswith(self._code)
        return is_code or path == self.readable or path == self.embedded

    def _expects(self, event: str, args: tuple) -> bool:
        """Return whether all paths are in the folder to save in, or are code."""
        if event == "os.chmod" and isinstance(args[0], int):
            # An open file was checked when it was opened.
            return True
        paths = [os.fsdecode(a) for a in args if isinstance(a, str | bytes)]
        return bool(paths) and all(
            path.startswith((self.writable, *self._code)) for path in paths
        )

    @property
    def embedded(self) -> str:
        from skpatchcore._backbones.embedded._network import WEIGHTS_PATH

        return str(WEIGHTS_PATH)


class Hang(BaseException):
    """Not caught by ``except Exception``."""


def ring(*args):
    raise Hang


def use(detector, model: Model, folder: Path) -> None:
    """Call all methods of a detector."""
    detector.predict(model.new)
    if has_maps(detector):
        images = Images(list(model.new))
        for seen in detector.inspect(images):
            seen.make_map()
        if hasattr(detector, "predict_maps"):
            detector.predict_maps(model.new)
    if hasattr(detector, "nearest_patches"):
        detector.nearest_patches(model.new)
    save(detector, folder / "again.skpc")


def run_case(model: Model, manifest: dict, folder: Path, watch: Watch) -> str:
    """Return the outcome for a forged file."""
    path = folder / "forged.skpc"
    model.write(manifest, path)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    watch.on = True
    try:
        try:
            detector = load(path)
        except (ModelFileError, FileNotFoundError):
            return "refused"
        except OSError as error:
            # The weights of the network would have to be downloaded.
            return "refused" if "etrained weights" in str(error) else f"load: {error!r}"
        except Exception as error:
            return f"load: {error!r:.200}"
        try:
            use(detector, model, folder / "out")
        except (ValueError, ImportError):
            return "loaded, then an error"
        except Exception as error:
            return f"use: {error!r:.200}"
        return "loaded"
    except Hang:
        return f"hang of more than {SECONDS} s"
    finally:
        watch.on = False
        signal.setitimer(signal.ITIMER_PROF, 0)


def main(n_cases: int, seed: int, folder: Path) -> dict:
    os.environ.update(HF_HUB_OFFLINE="1", HF_HOME=str(folder / "no_hub"))
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    signal.signal(signal.SIGPROF, ring)
    for name in ("out", "models"):
        (folder / name).mkdir(parents=True)
    models = [
        Model(name, detector, folder / "models" / "model.skpc")
        for name, detector in make_models(folder).items()
    ]
    values = hostile_values(lay_traps(folder))
    warm_up()
    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + EXTRA_BYTES, resource.RLIM_INFINITY))
    watch = Watch(folder / "forged.skpc", folder / "out")
    rng, outcomes, violations = random.Random(seed), Counter(), []
    watch.on = True
    pickle.loads(pickle.dumps(Trap()))
    Path(values[0]).exists()
    os.listdir(values[0])
    open(folder / "trap.pth", "rb").close()
    watch.on = False
    if len(watch.seen) != 3:
        violations.append(["the watch is blind", *watch.seen])
    watch.seen.clear()
    for model in models:
        # Unchanged models load and work.
        outcome = run_case(model, model.manifest, folder, watch)
        if outcome != "loaded" or watch.seen:
            violations.append([model.name, outcome, *watch.seen])
        watch.seen.clear()
    for i in range(n_cases):
        model = models[i % len(models)]
        manifest, change = forge(model, values, rng)
        outcome = run_case(model, manifest, folder, watch)
        expected = outcome in ("refused", "loaded", "loaded, then an error")
        outcomes[outcome if expected else "unexpected"] += 1
        if not expected or watch.seen:
            violations.append([change, outcome, *watch.seen])
        watch.seen.clear()
    return {"n": n_cases, "outcomes": outcomes, "violations": violations}


def warm_up() -> None:
    """Import what backends import at first use, since some imports run commands."""
    # Few rows, so that PyNNDescent's graph is not compiled, which takes seconds.
    X = np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32)
    for algorithm in ("faiss", "pynndescent"):
        with contextlib.suppress(ImportError):
            PatchMemoryBank(algorithm=algorithm, random_state=0).fit(X).predict(X)


if __name__ == "__main__":
    given = sys.argv[1:]
    print(json.dumps(main(int(given[0]), int(given[1]), Path(given[2]))))
