"""Recipes for eight processes on fewer: by Detectron2's rule, or by working through the same batch in parts."""

import pytest

from hicl_d2.command.errors import InputError
from hicl_d2.config import get_hicl_cfg, load_config
from hicl_d2.engine.scaling import same_schedule, scale_to_processes


def make_cfg(way="rule", reference=8):
    cfg = get_hicl_cfg()
    cfg.SOLVER.REFERENCE_WORLD_SIZE, cfg.SOLVER.SCALE_BY = reference, way
    cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.BASE_LR, cfg.SOLVER.MAX_ITER = 16, 0.08, 1000
    cfg.TEST.EVAL_PERIOD = 100
    cfg.MODEL.HICL.WARMUP_ITERS = 50
    cfg.freeze()
    return cfg


@pytest.mark.parametrize("processes", [1, 2, 16])
def test_the_rule_keeps_images_and_rate_per_image(processes, capsys):
    cfg = make_cfg()
    scaled = scale_to_processes(cfg, processes)
    assert 2 * processes == scaled.SOLVER.IMS_PER_BATCH
    assert pytest.approx(0.01 * processes) == scaled.SOLVER.BASE_LR
    assert scaled.SOLVER.MAX_ITER * scaled.SOLVER.IMS_PER_BATCH == 16000
    assert scaled.TEST.EVAL_PERIOD * processes == 800
    assert scaled.MODEL.HICL.WARMUP_ITERS * processes == 400
    said = capsys.readouterr().err
    assert f"scaled from 8 processes to {processes}" in said
    assert f"IMS_PER_BATCH 16 -> {2 * processes}" in said
    assert "EVAL_PERIOD 100 -> " in said


@pytest.mark.parametrize("processes", [4, 16, 10_000])
def test_what_is_done_stays_done_on_many_processes(processes):
    cfg = make_cfg(reference=2)
    cfg.defrost()
    cfg.SOLVER.CHECKPOINT_PERIOD = cfg.TEST.EVAL_PERIOD = cfg.SOLVER.MAX_ITER = 1
    scaled = scale_to_processes(cfg, processes)
    assert (scaled.SOLVER.CHECKPOINT_PERIOD, scaled.TEST.EVAL_PERIOD, scaled.SOLVER.MAX_ITER) == (1, 1, 1)
    cfg.TEST.EVAL_PERIOD = 0
    assert scale_to_processes(cfg, processes).TEST.EVAL_PERIOD == 0


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_accumulation_keeps_everything_but_the_parts(processes, capsys):
    cfg = make_cfg("accumulate")
    scaled = scale_to_processes(cfg, processes)
    assert 8 // processes == scaled.SOLVER.ACCUMULATE
    assert scaled.is_frozen()
    scaled.defrost()
    scaled.SOLVER.ACCUMULATE, scaled.SOLVER.REFERENCE_WORLD_SIZE = 1, 8
    assert scaled.dump() == cfg.dump()
    assert f"ACCUMULATE 1 -> {8 // processes}" in capsys.readouterr().err


def test_more_processes_than_the_reference_follow_the_rule_in_either_way():
    assert scale_to_processes(make_cfg("accumulate"), 16).SOLVER.IMS_PER_BATCH == 32


@pytest.mark.parametrize(("reference", "processes"), [(0, 3), (8, 8)])
def test_without_a_reference_or_on_as_many_nothing_changes(reference, processes, capsys):
    cfg = make_cfg(reference=reference)
    assert scale_to_processes(cfg, processes) is cfg
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("way", "reference", "processes", "message"),
    [
        ("half", 8, 1, "SCALE_BY is 'half'; it must be rule or accumulate"),
        ("rule", 5, 1, "IMS_PER_BATCH is 16, which SOLVER.REFERENCE_WORLD_SIZE 5 does not divide"),
        ("accumulate", 8, 3, "3 processes do not divide SOLVER.REFERENCE_WORLD_SIZE 8"),
    ],
)
def test_what_cannot_be_divided_is_said_in_one_line(way, reference, processes, message):
    with pytest.raises(InputError, match=message):
        scale_to_processes(make_cfg(way, reference), processes)


@pytest.mark.parametrize("name", ["mask2former_R_50_90k_bs16", "deeplab_v3_plus_R_103_90k_bs16"])
def test_recipes_of_cityscapes_fit_one_process(name):
    cfg = load_config(f"configs/cityscapes/{name}.yaml")
    assert scale_to_processes(cfg, 1).SOLVER.IMS_PER_BATCH == 2


def test_schedules_are_compared_over_numbers_of_processes(capsys):
    assert same_schedule(make_cfg(reference=0), 3, 1)
    assert same_schedule(make_cfg("accumulate"), 8, 2)
    assert same_schedule(make_cfg("accumulate"), 1, 2)
    assert not same_schedule(make_cfg("accumulate"), 8, 16)  # more than the reference: by the rule
    assert not same_schedule(make_cfg("rule"), 8, 2)
    assert capsys.readouterr().err == ""
