"""Reading a matrix file: the cells it spans, their identity, and what does not fit."""

import pytest
from harness.configs import Configs
from harness.errors import InputError
from harness.matrix import read_matrix
from harness.results import measures


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


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: [1, 2\nx: 3\n", r"matrix\.yaml:2: "),
        ("name: !!python/object/apply:os.system [true]\n", r"matrix\.yaml:1: .*python"),
        ("name: a\nname: b\n", r"matrix\.yaml:2: the key name is given twice"),
        ("- a list\n", "must hold keys and values, not a list"),
        ("", "name is missing"),
        ("name: \x00\n", "cannot be read"),
    ],
)
def test_malformed_yaml_is_said_with_its_line(bench, text, message):
    with pytest.raises(InputError, match=message) as error:
        read_matrix(bench.write("matrix.yaml", text))
    assert "\n" not in str(error.value)


def test_a_circle_of_bases_and_a_base_that_is_no_path_are_refused(bench):
    bench.write("base.yaml", "_BASE_: plain.yaml\n")
    with pytest.raises(InputError, match="leads back to this file"):
        cells(bench)
    bench.write("base.yaml", "_BASE_: [a, b]\n")
    with pytest.raises(InputError, match="must be the path of one config file"):
        cells(bench)
    bench.write("base.yaml", "_BASE_: gone.yaml\n")
    with pytest.raises(InputError, match=r"gone\.yaml does not exist"):
        cells(bench)


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
