"""Reading a matrix file: the cells it spans, their identity, and what does not fit."""

import pytest

from hicl_d2.command.errors import InputError
from hicl_d2.harness import ROOT
from hicl_d2.harness.configs import Configs
from hicl_d2.harness.matrix import read_matrix
from hicl_d2.harness.results import measures


def cells(bench, shorten=False, **changes):
    return read_matrix(bench.matrix(**changes), shorten).cells


def test_cells_are_the_product_of_the_axes_in_order(bench):
    found = cells(bench)
    assert [cell.name for cell in found] == [
        "parts/small/baseline/seed 1",
        "parts/small/baseline/seed 2",
        "parts/small/ours/seed 1",
        "parts/small/ours/seed 2",
    ]
    assert found[2].arguments() == ["STUB.GAIN", "1.5", "SEED", "1"]
    assert found[0].iterations == 3
    assert found[0].slug.startswith("parts-small-baseline-seed1-")


def test_ablations_and_several_data_sets_span_more_cells(bench):
    names = [
        cell.name
        for cell in cells(bench, ablations={"none": None, "hot": {"overrides": {"T": 2}}}, seeds=[1])
    ]
    assert names == [f"parts/small/{m}/{a}/seed 1" for m in ("baseline", "ours") for a in ("none", "hot")]


def test_later_axes_win_and_placeholders_are_filled(bench):
    bench.write("parts_small.yaml", "A: 1\n")
    found = cells(
        bench,
        config=f"{bench.folder}/{{dataset}}_{{model}}.yaml",
        overrides={"A": 2, "B": 2, "C": {"D": 2}},
        models={"small": {"overrides": {"B": 3, "C.D": 3}}},
        methods={"baseline": None, "ours": {"overrides": {"B": 4}}},
        seeds=[7],
    )
    assert found[0].config == bench.folder / "parts_small.yaml"
    assert found[0].resolved == {"A": 2, "B": 3, "C.D": 3, "SEED": 7}
    assert found[1].resolved == {"A": 2, "B": 4, "C.D": 3, "SEED": 7}


def test_shorten_comes_on_top_and_makes_other_cells(bench):
    plain, short = cells(bench), cells(bench, shorten=True)
    assert short[0].iterations == 1
    assert short[0].name == plain[0].name
    assert short[0].slug != plain[0].slug


@pytest.mark.parametrize(
    ("file", "text", "changes"),
    [
        ("base.yaml", "SOLVER: {MAX_ITER: 3, BASE_LR: 0.02}\n", True),
        ("plain.yaml", "_BASE_: base.yaml\nMODEL: {META_ARCHITECTURE: C}\n", True),
        ("plain.yaml", "# a comment\n_BASE_: base.yaml\nMODEL:\n  META_ARCHITECTURE: A\n", False),
        (
            "base.yaml",
            "SOLVER: {BASE_LR: 0.01, MAX_ITER: 3}\nOUTPUT_DIR: else\nMODEL: {DEVICE: cuda}\n",
            False,
        ),
        ("other.yaml", "A: 1\n", False),
    ],
)
def test_a_cell_is_another_one_when_its_resolved_config_changes_and_only_then(bench, file, text, changes):
    before = cells(bench)[0].slug
    bench.write(file, text)
    assert (cells(bench)[0].slug != before) is changes


def test_a_config_is_resolved_through_its_bases(bench):
    bench.write("top.yaml", "_BASE_: plain.yaml\nSOLVER: {MAX_ITER: 5}\n")
    assert Configs().resolve(bench.folder / "top.yaml", {"X": {"Y": 1}}) == {
        "SOLVER.MAX_ITER": 5,
        "SOLVER.BASE_LR": 0.01,
        "MODEL.META_ARCHITECTURE": "A",
        "X.Y": 1,
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metods": {}}, "unknown key metods; did you mean methods?"),
        ({"name": None}, "name is missing"),
        ({"methods": None}, "methods is missing"),
        ({"seeds": []}, "seeds is missing"),
        ({"seeds": [1, 2, 1]}, "seed 1 is named twice"),
        ({"seeds": ["a"]}, "seeds must be a list of whole numbers from 0, not ['a']"),
        ({"seeds": 3}, "seeds must be a list of whole numbers from 0, not 3"),
        ({"seeds": [-1]}, "seeds must be a list of whole numbers from 0, not [-1]"),
        ({"seeds": [True]}, "seeds must be a list of whole numbers from 0"),
        ({"name": ["x"]}, "name must be text, not ['x']"),
        ({"baseline": "basline"}, "baseline basline is not one of the methods; did you mean baseline?"),
        ({"datasets": ["a", "a"]}, "datasets: a is named twice"),
        ({"datasets": "parts"}, "datasets must be a list of names, or names with config and overrides"),
        ({"methods": {"a": {"confg": "x"}}}, "methods: a: unknown key confg; did you mean config?"),
        ({"methods": {"a": 3}}, "methods: a must have config and overrides, not 3"),
        ({"methods": {"a": {"config": 3}}}, "methods: a: config must be text, not 3"),
        ({"methods": {"a": {"overrides": [1]}}}, "methods: a: overrides must be keys and values, not [1]"),
        ({"methods": ["a"]}, "no config for parts/small/a; give the matrix a config"),
        ({"methods": {"a": {"config": "{size}.yaml"}}}, "config {size}.yaml may hold {dataset}, {model}"),
        ({"overrides": {"SEED": 3}}, "SEED is set by the harness; list it under seeds"),
        ({"overrides": {"OUTPUT_DIR": "x"}}, "OUTPUT_DIR is set by the harness; every cell gets its own"),
    ],
)
def test_what_does_not_fit_is_said_in_one_line(bench, changes, message):
    with pytest.raises(InputError) as error:
        cells(bench, **changes)
    assert message in str(error.value)
    assert "matrix.yaml" in str(error.value)
    assert "\n" not in str(error.value)


def test_two_cells_with_one_identity_are_refused(bench):
    same = {"config": str(bench.folder / "plain.yaml")}
    with pytest.raises(
        InputError, match=r"parts/small/a/seed 1 and parts/small/b/seed 1 are the same training"
    ):
        cells(bench, methods={"a": same, "b": same})


def test_shortening_needs_the_matrix_to_say_how(bench):
    with pytest.raises(InputError, match=r"matrix\.yaml has no shorten"):
        read_matrix(bench.matrix(shorten=None), shorten=True)


@pytest.mark.parametrize("place", ["overrides", "shorten", "method"])
def test_an_override_that_is_given_in_two_spellings_is_refused(bench, place):
    twice = {"SOLVER.BASE_LR": 0.002, "SOLVER": {"BASE_LR": 0.003}}
    point = {"config": str(bench.folder / "plain.yaml"), "overrides": twice}
    bench.matrix(**({"methods": {"a": point}} if place == "method" else {place: twice}))
    message = (
        r"(overrides|shorten): SOLVER\.BASE_LR is given twice, as 0\.002 and as 0\.003; keep one of them"
    )
    with pytest.raises(InputError, match=message):
        read_matrix(bench.folder / "matrix.yaml", shorten=place == "shorten")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: [1, 2\nx: 3\n", r"matrix\.yaml:2: "),
        ("name: !!python/object/apply:os.system [true]\n", r"matrix\.yaml:1: .*python"),
        ("name: a\nname: b\n", r"matrix\.yaml:2: the key name is given twice"),
        (
            "name: a\nconfig: {dataset}/x.yaml\n",
            r"matrix\.yaml:2: .*; put a value that begins with a brace into quotes",
        ),
        ("- a list\n", "must hold keys and values, not a list"),
        ("", "name is missing"),
        ("name: \x00\n", "not valid YAML: .*special characters"),
    ],
)
def test_malformed_yaml_is_said_with_its_line(bench, text, message):
    with pytest.raises(InputError, match=message) as error:
        read_matrix(bench.write("matrix.yaml", text))
    assert "\n" not in str(error.value)


def test_a_circle_of_bases_and_a_base_that_is_no_path_are_refused(bench):
    bench.write("base.yaml", "_BASE_: plain.yaml\n")
    with pytest.raises(
        InputError, match=r"base\.yaml: _BASE_ leads back to .*plain\.yaml; remove the circle"
    ):
        cells(bench)
    bench.write("base.yaml", "_BASE_: [a, b]\n")
    with pytest.raises(InputError, match="must be the path of one config file"):
        cells(bench)
    bench.write("base.yaml", "_BASE_: gone.yaml\n")
    with pytest.raises(InputError, match=r"gone\.yaml does not exist"):
        cells(bench)


def test_a_matrix_takes_from_its_base_what_it_does_not_say_itself(bench):
    above = bench.folder / "above"
    above.mkdir()
    bench.matrix(
        overrides={"SOLVER.BASE_LR": 0.5, "SOLVER": {"MAX_ITER": 9}},
        words={"kind": "plain", "end": "yaml"},
        resources={"gpus": 0, "cpus": 2},
        report={"metrics": ["sem_seg/mAcc"]},
        exclude=[{"method": "baseline", "seed": "2"}],
        methods={"baseline": None, "ours": {"overrides": {"T": 2}}},
        config="{kind}.{end}",
    ).rename(above / "Base.yaml")
    bench.write("plain.yaml", "MODEL: {DEVICE: cpu}\n").rename(above / "plain.yaml")
    bench.write(
        "matrix.yaml",
        "_BASE_: above/Base.yaml\nname: own\nseeds: [2, 3]\nmethods: {other: {overrides: {T: 1}}, baseline: }\n"
        "words: {kind: other}\n"
        "overrides: {SOLVER.MAX_ITER: 4}\nresources: {cpus: 1}\nreport: {compare: [other, baseline]}\n"
        "shorten: {SOLVER.BASE_LR: 1}\n",
    )
    matrix = read_matrix(bench.folder / "matrix.yaml")
    assert [cell.name for cell in matrix.cells] == [
        "parts/small/other/seed 2",
        "parts/small/other/seed 3",
        "parts/small/baseline/seed 3",
    ]
    cell = matrix.cells[0]
    assert (matrix.name, matrix.path) == ("own", bench.folder / "matrix.yaml")
    assert cell.config == bench.folder / "other.yaml"
    assert (cell.resolved["SOLVER.BASE_LR"], cell.resolved["SOLVER.MAX_ITER"]) == (0.5, 4)
    assert (cell.resources.gpus, cell.resources.cpus) == (0, 1)
    assert (matrix.metrics, matrix.compare) == (("sem_seg/mAcc",), ("other", "baseline"))
    short = read_matrix(bench.folder / "matrix.yaml", shorten=True).cells[0].resolved
    assert (short["SOLVER.BASE_LR"], short["SOLVER.MAX_ITER"]) == (1, 1)


def test_a_base_changes_neither_cell_nor_identity(bench):
    whole = cells(bench, overrides={"SOLVER.MAX_ITER": 7}, resources={"gpus": 0})
    bench.matrix(overrides={"SOLVER.MAX_ITER": 7}, resources={"gpus": 0}, seeds=[5], name=None).rename(
        bench.folder / "Base.yaml"
    )
    bench.write("matrix.yaml", "_BASE_: Base.yaml\nname: test\nseeds: [1, 2]\n")
    assert read_matrix(bench.folder / "matrix.yaml").cells == whole


def test_an_empty_key_clears_what_the_base_has(bench):
    bench.matrix(exclude=[{"seed": "1"}]).rename(bench.folder / "Base.yaml")
    bench.write("matrix.yaml", "_BASE_: Base.yaml\nname: own\nexclude:\n")
    assert len(read_matrix(bench.folder / "matrix.yaml").cells) == 4


def test_a_config_beside_the_base_is_found_from_another_folder(bench):
    bench.matrix(methods=["baseline"], config="plain.yaml")
    below = bench.folder / "below"
    below.mkdir()
    bench.write("below/matrix.yaml", "_BASE_: ../matrix.yaml\nname: own\n")
    assert read_matrix(below / "matrix.yaml").cells[0].config.samefile(bench.folder / "plain.yaml")


@pytest.mark.parametrize(
    ("base", "own", "message"),
    [
        (
            "name: a\n",
            "_BASE_: base_matrix.yaml\nmethods: [a]\nseeds: [1]\n",
            r"matrix\.yaml: name is missing",
        ),
        ("seedz: [1]\n", "_BASE_: base_matrix.yaml\nname: a\n", r"base_matrix\.yaml: unknown key seedz"),
        (
            "seeds: [x]\nmethods: [a]\n",
            "_BASE_: base_matrix.yaml\nname: a\n",
            r"base_matrix\.yaml: seeds must be",
        ),
        (
            "overrides: 3\n",
            "_BASE_: base_matrix.yaml\nname: a\nmethods: [a]\nseeds: [1]\n",
            r"base_matrix\.yaml: over",
        ),
        (
            "name: !!python/object/apply:os.system [x]\n",
            "_BASE_: base_matrix.yaml\nname: a\n",
            "would run code",
        ),
        ("_BASE_: matrix.yaml\n", "_BASE_: base_matrix.yaml\nname: a\n", "leads back to .*remove the circle"),
        ("", "_BASE_: [a, b]\nname: a\n", "must be the path of one matrix file"),
        ("", "_BASE_: gone.yaml\nname: a\n", r"matrix file .*gone\.yaml does not exist"),
        ("", "_BASE: base_matrix.yaml\nname: a\n", "unknown key _BASE; did you mean _BASE_"),
    ],
)
def test_what_is_wrong_with_a_base_is_said_in_one_line(bench, base, own, message):
    bench.write("base_matrix.yaml", base)
    with pytest.raises(InputError, match=message) as error:
        read_matrix(bench.write("matrix.yaml", own))
    assert "\n" not in str(error.value)


def test_measures_are_every_number_of_a_result_and_nan_is_none():
    result = {
        "iterations": 9,
        "metrics": {"last": {"iteration": 9, "a": 1, "b": float("nan")}, "best": {"iteration": 4, "a": 2.5}},
        "class_iou": {"sky": 3.0},
        "seconds": {"total": 4, "per_iteration": None},
        "peak_memory_mb": 5.0,
    }
    assert list(measures(result)) == [
        ("a", "last", 1.0, 9),
        ("b", "last", None, 9),
        ("a", "best", 2.5, 4),
        ("sem_seg/IoU-sky", "last", 3.0, 9),
        ("seconds/total", "last", 4.0, 9),
        ("seconds/per_iteration", "last", None, 9),
        ("peak_memory_mb", "last", 5.0, 9),
    ]


def test_exclude_leaves_cells_out_and_include_adds_some(bench):
    found = cells(
        bench,
        seeds=[1, 2],
        exclude=[{"method": "ours", "seed": 2}],
        include=[
            {"dataset": "parts", "model": "large", "method": "ours", "seeds": [7], "overrides": {"W": 9}}
        ],
    )
    assert [cell.name for cell in found] == [
        "parts/small/baseline/seed 1",
        "parts/small/baseline/seed 2",
        "parts/small/ours/seed 1",
        "parts/large/ours/seed 7",
    ]
    assert found[-1].config == bench.folder / "other.yaml"
    assert found[-1].overrides == {"STUB.GAIN": 1.5, "W": 9}


def test_words_fill_the_templates_of_configs_and_later_axes_win(bench):
    bench.write("parts_long_x.yaml", "A: 1\n")
    found = cells(
        bench,
        config=f"{bench.folder}/{{dataset}}_{{schedule}}{{variant}}.yaml",
        words={"variant": ""},
        datasets={"parts": {"words": {"schedule": "short"}}},
        models={"small": {"words": {"schedule": "long"}}},
        methods={"ours": {"words": {"variant": "_x"}}},
    )
    assert found[0].config == bench.folder / "parts_long_x.yaml"


def test_a_config_that_does_not_exist_is_an_obstacle_of_its_cells_alone(bench):
    found = cells(
        bench, methods={"a": {"config": "no/such.yaml"}, "b": {"config": str(bench.folder / "plain.yaml")}}
    )
    assert [cell.obstacle for cell in found] == ["no config no/such.yaml"] * 2 + [None] * 2


def test_two_spellings_of_a_value_are_one_value(bench):
    spellings = [{"A": "(1, 2)", "B": "1e-4", "C": 2.0}, {"A": [1, 2], "B": 0.0001, "C": 2}]
    assert len({cells(bench, overrides=overrides)[0].hash for overrides in spellings}) == 1


def test_the_content_of_weights_counts_and_neither_their_place_nor_their_name(bench):
    def first(weights):
        return cells(bench, overrides={"MODEL.WEIGHTS": str(weights)})[0].hash

    files = [bench.folder / name / "model_final.pth" for name in ("a", "b", "c")]
    for file, content in zip(files, ("one", "two", "one"), strict=True):
        file.parent.mkdir()
        file.write_text(content)
    one, two, again = map(first, files)
    assert one == again != two
    files[1].write_text("one")
    assert first(files[1]) == one
    assert first(f"{files[0]}?matching_heuristics=True") != one
    assert len({first(f"detectron2://x/{name}.pkl") for name in ("R-50", "R-101")} | {first("")}) == 3


def test_resources_come_from_all_axes_and_a_cpu_config_needs_no_gpu(bench):
    found = cells(
        bench,
        resources={"memory_gb": 10},
        models={"small": {"resources": {"memory_gb": 20, "gpus": 2}}},
        methods={"baseline": {"config": str(bench.folder / "plain.yaml"), "resources": {"timeout_hours": 3}}},
    )[0].resources
    assert (found.gpus, found.memory_gb, found.timeout_hours) == (2, 20, 3)
    assert cells(bench, overrides={"MODEL.DEVICE": "cpu"})[0].resources.gpus == 0
    assert cells(bench)[0].resources.gpus == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"exclude": [{"method": "our"}]}, "exclude: entry 1 matches no cell"),
        ({"exclude": [{"metod": "ours"}]}, "exclude: entry 1: unknown key metod; did you mean method?"),
        ({"exclude": {"method": "ours"}}, "exclude must be a list of entries"),
        ({"exclude": [{"seed": [1, 2]}]}, "exclude leaves no cell"),
        ({"include": [{"dataset": "parts", "seeds": [1, 1]}]}, "seed 1 is named twice"),
        ({"resources": {"gpu": 1}}, "resources: unknown key gpu; did you mean gpus?"),
        ({"resources": {"gpus": -1}}, "resources: gpus must be a whole number, not -1"),
        ({"resources": {"memory_gb": "much"}}, "resources: memory_gb must be a number, not 'much'"),
        ({"report": {"metrics": "mIoU"}}, "report: metrics must be a list of names"),
        ({"report": {"compare": ["ours"]}}, "report: compare must be two methods"),
        ({"report": {"compare": ["ours", "theirs"]}}, "report: compare: theirs is not one of the methods"),
        ({"baseline": {"metod": "ours"}}, "baseline: unknown key metod; did you mean method?"),
        ({"baseline": {"method": "our"}}, "baseline our is not one of the methods; did you mean ours?"),
        ({"datasets": {"parts": {"data": 3}}}, "datasets: parts: data must be a list of files and folders"),
        (
            {"include": [{"dataset": "parts", "model": "small", "method": "ours", "overrides": {"X": 1}}]},
            "two cells are called parts/small/ours/seed 1",
        ),
    ],
)
def test_what_does_not_fit_in_the_newer_keys_is_said_in_one_line(bench, changes, message):
    with pytest.raises(InputError) as error:
        cells(bench, **changes)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


COUNTS = {
    "smoke": 2,
    "parts": 30,
    "parts_forms": 33,
    "camvid": 87,
    "camvid_cpu": 58,
    "camvid_cpu_choice": 46,
    "camvid_cpu_ablation": 39,
    "camvid_cpu_further": 24,
    "camvid_cpu_mask2former": 6,
    "camvid_cpu_cells": 12,
    "paper": 630,
    "ablation": 235,
}


@pytest.mark.parametrize(("name", "count"), COUNTS.items())
def test_the_matrices_span_their_cells(name, count):
    matrix = read_matrix(ROOT / "benchmark" / "matrices" / f"{name}.yaml")
    assert len(matrix.cells) == count
    for cell in matrix.cells:
        base = matrix.baseline_of(cell.group)
        assert base in matrix.groups(), f"{cell.name} is compared with nothing"


def test_an_ablation_changes_a_key_that_exists_and_differs_from_the_config():
    from hicl_d2.config import load_config

    matrix = read_matrix(ROOT / "benchmark" / "matrices" / "ablation.yaml")
    seen = set()
    for cell in matrix.cells:
        if cell.ablation == "default" or cell.seed != 1:
            continue
        plain = load_config(cell.config)
        changed = load_config(cell.config, [word for k, v in cell.overrides.items() for word in (k, str(v))])
        assert plain != changed, f"{cell.ablation} changes nothing"
        seen.add(str(changed))
    assert len(seen) == len({cell.ablation for cell in matrix.cells}) - 1
