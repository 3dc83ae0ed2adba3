import csv
import json

import pytest

from skpatchcore._benchmark import _published as published
from skpatchcore._benchmark import _tables as results

WIDE = {
    "backbone": "wide_resnet50_2.tv_in1k",
    "weights": None,
    "layers": ("layer2", "layer3"),
    "coreset_fraction": 0.1,
    "image_size": 256,
    "crop_size": 224,
}
COUNTS = published._COUNTS


def row(category="nut", **values):
    numbers = dict.fromkeys(results.COLUMNS[1:], 0.5)
    return {"category": category, **numbers, **values}


def test_means_are_over_the_categories_that_have_a_value():
    rows = [row(n_train=3, aupro=0.2), row(n_train=6, aupro=None), row(aupro=0.4)]
    mean = results.mean_row(rows[:2])
    assert list(mean) == list(results.COLUMNS)
    assert (mean["category"], mean["n_train"], mean["aupro"]) == ("mean", 4.5, 0.2)
    assert results.mean_row(rows)["aupro"] == pytest.approx(0.3)
    assert results.mean_row([row(aupro=None)])["aupro"] is None


def test_results_are_the_same_in_both_files(tmp_path):
    rows = [row("nut", n_test=4), row("bolt", aupro=None, n_test=2)]
    results.write_results(tmp_path / "new", rows, {"image_size": (32, 48)})
    with open(tmp_path / "new" / "results.csv", newline="") as file:
        table = list(csv.DictReader(file))
    report = json.loads((tmp_path / "new" / "results.json").read_text())
    assert set(report) == {"results", "published", "settings", "versions"}
    assert report["settings"] == {"image_size": [32, 48]}
    assert {"skpatchcore", "python", "torch"} <= set(report["versions"])
    assert [r["category"] for r in table] == ["nut", "bolt", "mean"]
    assert table[1]["aupro"] == ""
    assert report["results"][1]["aupro"] is None
    for line, entry in zip(table, report["results"], strict=True):
        assert tuple(line) == tuple(entry) == results.COLUMNS
        assert float(line["n_test"]) == entry["n_test"]


def test_a_file_that_cannot_be_written_leaves_the_old_one(tmp_path):
    path = tmp_path / "results.csv"
    path.write_text("old")
    with pytest.raises(UnicodeEncodeError):
        results.replace_text(path, "\udc80")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_table_shows_missing_values_and_rounds():
    lines = results.format_table([row(n_train=4.5, aupro=None, fit_seconds=1.26)])
    header, cells = lines.splitlines()[0], lines.splitlines()[-1].split()
    assert header.split()[:3] == ["category", "n", "n"]
    assert cells == ["nut", "4", "0", *["0.500"] * 6, "-", "1.3", "0.5"]


# What others published --------------------------------------------------------------


def mvtec_rows(names=published.CATEGORIES, **values):
    return [
        row(name, n_train=COUNTS[name][0], n_test=COUNTS[name][1], **values)
        for name in names
    ]


def test_counts_add_up_to_those_of_the_data_set():
    """Bergmann et al., 2021: 3629 images to train, 1725 to test with."""
    train, test = zip(*COUNTS.values(), strict=True)
    assert (sum(train), sum(test)) == (3629, 1725)


@pytest.mark.parametrize(
    ("name", "backbone", "fraction", "means"),
    [
        ("Amazon", "wide_resnet50_2", 0.1, {"image_auroc": 99.2, "pixel_auroc": 98.1}),
        ("Amazon", "wide_resnet50_2", 0.01, {"image_auroc": 99.3, "pixel_auroc": 97.8}),
        (
            "anomalib",
            "wide_resnet50_2",
            0.1,
            {"image_auroc": 98.0, "pixel_auroc": 98.0, "image_f1": 97.6},
        ),
        (
            "anomalib",
            "resnet18",
            0.1,
            {"image_auroc": 97.3, "pixel_auroc": 97.6, "image_f1": 97.0},
        ),
    ],
)
def test_means_are_those_that_the_sources_state(name, backbone, fraction, means):
    settings = {**WIDE, "backbone": backbone, "coreset_fraction": fraction}
    rows = mvtec_rows()
    (one,) = [p for p in published.comparable(settings, rows) if p.name == name]
    for metric, mean in means.items():
        value = published.published_value(one, metric, "mean", rows)
        assert round(100 * value, 1) == mean


def names_for(rows=None, **settings):
    rows = mvtec_rows() if rows is None else rows
    return [one.name for one in published.comparable({**WIDE, **settings}, rows)]


def test_only_settings_of_the_same_network_and_coreset_are_compared():
    assert names_for() == ["paper", "Amazon", "anomalib"]
    assert names_for(layers=["layer2", "layer3"]) == ["paper", "Amazon", "anomalib"]
    assert names_for(coreset_fraction=0.25) == ["paper", "anomalib"]
    assert names_for(backbone="resnet18") == ["anomalib"]
    assert names_for(layers=("layer1",)) == []
    assert names_for(backbone="gabor") == []
    assert names_for(weights="random") == []


def test_a_category_of_the_same_name_with_other_images_is_not_compared():
    assert names_for([row("screw", n_train=5, n_test=4)]) == []
    rows = [*mvtec_rows(["bottle"]), row("screw", n_train=5, n_test=4)]
    amazon = published.comparable(WIDE, rows)[1]
    value = published.published_value
    assert value(amazon, "image_auroc", "bottle", rows) == 1
    assert value(amazon, "image_auroc", "screw", rows) is None
    assert value(amazon, "image_auroc", "mean", rows) is None


def test_means_of_others_are_over_the_same_categories():
    rows = mvtec_rows(["cable", "pill"])
    paper, amazon, _ = published.comparable(WIDE, rows)
    value = published.published_value
    mean = value(amazon, "image_auroc", "mean", rows)
    assert mean == pytest.approx((0.997 + 0.967) / 2)
    # The paper's tables hold means over all categories.
    assert value(paper, "image_auroc", "mean", rows) is None
    assert value(paper, "image_auroc", "mean", mvtec_rows()) == 0.99


def test_different_settings_are_named():
    paper, _, anomalib = published.comparable(WIDE, mvtec_rows())
    assert published.differences(paper, WIDE) == ""
    without_crop = {**WIDE, "crop_size": None}
    assert published.differences(paper, without_crop) == "crop_size 224, this run None"
    assert "coreset_fraction not stated" in published.differences(anomalib, WIDE)


def test_published_results_are_listed_with_those_of_a_run(tmp_path):
    rows = mvtec_rows(["bottle", "pill"], image_auroc=0.9)
    files = results.write_results(tmp_path, rows, WIDE)
    assert [file.suffix for file in files] == [".csv", ".json", ".md", ".tex"]
    with open(files[0], newline="") as file:
        table = {line["category"]: line for line in csv.DictReader(file)}
    assert table["pill"]["image_auroc_Amazon"] == "0.967"
    assert table["pill"]["image_auroc_anomalib"] == "0.924"
    assert table["mean"]["image_auroc_paper"] == ""
    report = json.loads(files[1].read_text())
    amazon = report["published"][1]
    assert amazon["url"].startswith("https://github.com/amazon-science/")
    assert amazon["results"][1]["pixel_auroc"] == 0.978
    assert amazon["differs"] == ""


def test_tables_are_markdown_and_latex(tmp_path):
    rows = mvtec_rows(["metal_nut"], aupro=None)
    *_, markdown, latex = results.write_results(tmp_path, rows, WIDE)
    lines = markdown.read_text().splitlines()
    (line,) = [line for line in lines if "image AUROC this run" in line]
    titles = [cell.strip() for cell in line.strip("|").split("|")]
    values = [cell.strip() for cell in lines[lines.index(line) + 2].split("|")[1:-1]]
    compared = dict(zip(titles, values, strict=True))
    assert compared["category"] == "metal_nut"
    assert compared["image AUROC this run"] == "0.500"
    assert compared["image AUROC Amazon"] == "0.999"
    assert compared["AUPRO paper"] == compared["AUPRO this run"] == "-"
    text = latex.read_text()
    assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") == 2
    assert r"metal\_nut" in text
    tail = text[text.rindex(r"\end{tabular}") :].splitlines()[1:]
    assert all(line.startswith("%") for line in tail if line)
