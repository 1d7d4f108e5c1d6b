"""Config files are read safely, and what is wrong with one is said in one line with file, line and key."""

import inspect
import subprocess
import sys
from pathlib import Path

import pytest

from hicl_d2.command.errors import InputError
from hicl_d2.command.safe_yaml import flatten
from hicl_d2.config import add_hicl_config, get_hicl_cfg, load_config
from hicl_d2.contrast import HiCLBranch
from hicl_d2.d2 import USES_DETECTRON2
from hicl_d2.d2.config import CfgNode, get_cfg

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = sorted((ROOT / "configs").glob("*/*.yaml"))


def write(folder, text, name="config.yaml"):
    (folder / name).write_text(text)
    return folder / name


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_config_of_the_project_loads(path):
    cfg = load_config(path)
    assert cfg.is_frozen()
    if not path.stem.startswith("Base-"):
        assert cfg.SOLVER.REFERENCE_WORLD_SIZE > 0
        assert cfg.SOLVER.IMS_PER_BATCH % cfg.SOLVER.REFERENCE_WORLD_SIZE == 0


@pytest.mark.parametrize("path", [p for p in CONFIGS if p.stem.endswith("_hicl")], ids=lambda path: path.stem)
def test_a_hicl_config_differs_from_its_twin_in_the_branch_alone(path):
    twin = load_config(path.with_name(path.name.replace("_hicl", "")))
    cfg = load_config(path).clone()
    cfg.defrost()
    cfg.MODEL.META_ARCHITECTURE = twin.MODEL.META_ARCHITECTURE
    cfg.MODEL.HICL = twin.MODEL.HICL
    cfg.OUTPUT_DIR = twin.OUTPUT_DIR
    assert cfg.dump() == twin.dump()


def test_the_base_is_read_first_and_overrides_last(tmp_path):
    write(tmp_path, "SOLVER:\n  BASE_LR: 0.5\n  MAX_ITER: 7\n  STEPS: (1, 2)\n", "base.yaml")
    path = write(tmp_path, '_BASE_: "base.yaml"\nSOLVER:\n  MAX_ITER: 8\n')
    cfg = load_config(path, ["MODEL.HICL.WINDOWS", "[1, 2]", "SEED", "4"])
    assert (cfg.SOLVER.BASE_LR, cfg.SOLVER.MAX_ITER, cfg.SOLVER.STEPS) == (0.5, 8, (1, 2))
    assert (cfg.MODEL.HICL.WINDOWS, cfg.SEED) == ([1, 2], 4)


def test_a_whole_number_and_an_exponent_will_do_for_a_float(tmp_path):
    cfg = load_config(write(tmp_path, "SOLVER:\n  BASE_LR: 1\n  WEIGHT_DECAY: 1e-2\n"))
    assert (cfg.SOLVER.BASE_LR, cfg.SOLVER.WEIGHT_DECAY) == (1.0, 0.01)
    assert isinstance(cfg.SOLVER.BASE_LR, float)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "MODEL:\n  HICL:\n    WINDOWZ: [1]\n",
            r"config.yaml:3: unknown key MODEL.HICL.WINDOWZ; .* MODEL.HICL.WINDOWS\?",
        ),
        ("PURITY: [1]\n", r"config.yaml:1: unknown key PURITY; did you mean MODEL.HICL.PURITY\?"),
        ("SOLVER:\n  BASE_LR: [1]\n", r"config.yaml:2: SOLVER.BASE_LR must be a number, not \[1\]"),
        ("MODEL: 5\n", r"config.yaml:1: MODEL is a section"),
        ("SEED:\n  A: 1\n", r"config.yaml:2: SEED.A: SEED holds a value"),
        ("MODEL:\n  X: [1\n y: }\n", r"config.yaml:\d+: not valid YAML"),
        ("- 1\n- 2\n", r"config.yaml: .*keys and values"),
        (
            "X: !!python/object/apply:os.system ['true']\n",
            r"config.yaml:1: the tag !!python/object/apply:os.system .*refused",
        ),
        (
            'INPUT:\n  MIN_SIZE_TRAIN: !!python/object/apply:eval ["[open(x) for x in range(5, 8)]"]\n',
            r"config.yaml:2: .*apply:eval would run code and is refused, except .*: it holds more than arithmetic",
        ),
        ("X: !!python/tuple [1]\n", r"config.yaml:1: the tag !!python/tuple"),
        ('_BASE_: "config.yaml"\n', r"leads back"),
        ('_BASE_: "missing.yaml"\n', r"missing.yaml does not exist"),
        ("\x00", r"config.yaml: not valid YAML: .*special characters are not allowed"),
        ('"A\\nB": 1\n', r"config.yaml:1: unknown key A B"),
        ("_BASE_: [1]\n", r"config.yaml:1: _BASE_ must be the path"),
    ],
)
def test_a_wrong_file_is_one_line(tmp_path, text, message):
    with pytest.raises(InputError, match=message) as raised:
        load_config(write(tmp_path, text))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("opts", [["SEED"], ["SEEDS", "1"], ["SEED", "x"], ["MODEL", "1"]])
def test_a_wrong_override_is_one_line(tmp_path, opts):
    with pytest.raises(InputError, match=r"SEED|section") as raised:
        load_config(write(tmp_path, ""), opts)
    assert "\n" not in str(raised.value)


def test_a_file_that_is_not_text_is_one_line(tmp_path):
    (tmp_path / "config.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="cannot be read"):
        load_config(tmp_path / "config.yaml")


def test_the_added_keys_are_off_by_default():
    cfg = get_hicl_cfg()
    assert cfg.MODEL.META_ARCHITECTURE != "HiCL"
    assert (cfg.SOLVER.OPTIMIZER, cfg.SOLVER.BACKBONE_MULTIPLIER, cfg.INPUT.COLOR_AUG_SSD) == (
        "SGD",
        1.0,
        False,
    )


def test_the_keys_of_the_branch_are_its_keywords_with_its_defaults():
    keys = {key.lower(): value for key, value in get_hicl_cfg().MODEL.HICL.items()}
    for name, keyword in inspect.signature(HiCLBranch).parameters.items():
        if keyword.kind is keyword.KEYWORD_ONLY and name != "ignore_value":
            default = keyword.default
            assert keys[name] == (list(default) if isinstance(default, tuple) else default), name


def test_keys_that_a_config_has_are_left_as_they_are_and_absent_ones_are_added():
    cfg = get_cfg()
    cfg.SOLVER.OPTIMIZER, cfg.SOLVER.BACKBONE_MULTIPLIER = "ADAMW", 0.1
    cfg.MODEL.MASK_FORMER = CfgNode({"NUM_OBJECT_QUERIES": 7, "OF_ANOTHER": "project"})
    cfg.INPUT.CROP.SINGLE_CATEGORY_MAX_AREA = 0.5
    cfg.TEST.AUG.MIN_SIZES = (1, 2)
    before = dict(flatten(cfg))
    add_hicl_config(cfg)
    after = dict(flatten(cfg))
    assert {key: after[key] for key in before} == before
    ours = dict(flatten(get_hicl_cfg()))
    assert {key: after[key] for key in after if key not in before} == {
        key: ours[key] for key in ours if key not in before
    }
    again = cfg.clone()
    add_hicl_config(again)
    assert again == cfg


def test_added_to_detectron2s_config_it_is_the_projects():
    cfg = get_cfg()
    add_hicl_config(cfg)
    assert cfg == get_hicl_cfg()
    cfg.MODEL.HICL.WINDOWS.append(32)
    cfg.DATASETS.CUSTOM.own = CfgNode({"IMAGES": "a"})  # the section takes new keys
    assert get_hicl_cfg().MODEL.HICL.WINDOWS == [1, 2, 4, 8]


def test_a_config_in_python_is_one_line_that_names_the_way(tmp_path):
    path = write(tmp_path, "raise SystemExit('it was run')", "lazy.py")
    with pytest.raises(InputError, match=r"lazy.py is Python.*LazyConfig attaches Hi-CL.*read YAML") as error:
        load_config(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("form", ['["{}"]', '"{}"', '!!str "{}"'])
def test_the_list_over_a_range_in_mask2formers_files_is_computed(tmp_path, form):
    if form.startswith("!!str"):  # a tag of its own: the text as it is
        value, expected = form, "no list"
    else:
        value, expected = f"!!python/object/apply:eval {form}", [256, 307, 358]
    text = value.replace("{}", "[int(x * 0.1 * 512) for x in range(5, 8)]")
    path = write(tmp_path, f"INPUT: {{MIN_SIZE_TRAIN: {text}}}\n")
    if expected == "no list":
        with pytest.raises(InputError, match=r"MIN_SIZE_TRAIN must be a"):
            load_config(path)
    else:
        assert list(load_config(path).INPUT.MIN_SIZE_TRAIN) == expected


@pytest.mark.skipif(USES_DETECTRON2, reason="Detectron2's config imports torch")
@pytest.mark.parametrize("words", [("SOLVER.MAX_ITR", "3"), ("SOLVER.MAX_ITER", "many")])
def test_a_slip_in_a_config_is_answered_before_torch_is_imported(words: tuple[str, str]) -> None:
    config = str(ROOT / "configs/camvid/deeplab_v3_plus_R_18_cpu.yaml")
    code = (
        "import runpy, sys\n"
        f"sys.argv = ['train_net.py', '--config-file', {config!r}, *{words!r}]\n"
        "try:\n"
        f"    runpy.run_path({str(ROOT / 'projects/HiCL/train_net.py')!r}, run_name='__main__')\n"
        "finally:\n"
        "    print('torch' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert words[0] in done.stderr
    assert done.stdout == "False\n"


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("20241126", "20241126"),
        ("'off'", "off"),
        ("None", "None"),
        ("2024-11-26", "2024-11-26"),
        ("1e-2", "1e-2"),
        ("[1]", "[1]"),
    ],
)
def test_text_stays_text_on_the_command_line_and_in_quotes(tmp_path, written, value):
    plain = written.strip("'")
    assert value == load_config(write(tmp_path, ""), ["OUTPUT_DIR", plain]).OUTPUT_DIR
    assert value == load_config(write(tmp_path, f'OUTPUT_DIR: "{plain}"\n')).OUTPUT_DIR


def test_output_in_the_home_folder_is_not_written_to_a_folder_called_tilde(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/somewhere")
    file = write(tmp_path, 'OUTPUT_DIR: "~/runs"\n')
    assert load_config(file).OUTPUT_DIR == "/somewhere/runs"
    assert load_config(file, ["OUTPUT_DIR", "./~/b"]).OUTPUT_DIR == "./~/b"


@pytest.mark.parametrize("written", ["20241126", "off", "null", "", "1.5", "[a]"])
def test_what_yaml_makes_of_text_without_quotes_is_refused(tmp_path, written):
    with pytest.raises(InputError, match=r"config.yaml:2: MODEL.WEIGHTS must be a str") as raised:
        load_config(write(tmp_path, f"MODEL:\n  WEIGHTS: {written}\n"))
    assert ("quote it" in str(raised.value)) == (written != "[a]")


def test_a_norm_may_be_none_as_in_detectron2(tmp_path):
    for written in ("None", "null"):
        assert (
            load_config(write(tmp_path, f"MODEL:\n  RESNETS:\n    NORM: {written}\n")).MODEL.RESNETS.NORM
            is None
        )


def test_a_key_that_is_no_text_is_refused(tmp_path):
    for written in ("off: 1", "SOLVER: {1: 2}", "MODEL: {null: 2}"):
        with pytest.raises(InputError, match=r"config.yaml:1: YAML reads the key .* quote it"):
            load_config(write(tmp_path, f"{written}\n"))


@pytest.mark.parametrize("by", ["file", "command line"])
def test_values_of_masks_survive_being_written_to_config_yaml(by: str, tmp_path: Path) -> None:
    """A run writes its whole config; keys that are numbers in YAML must not end it."""
    block = "IMAGES: a, LABELS: b, CLASSES: [back, thing]"
    values = ", LABEL_VALUES: {0: back, 7: null, 255: thing}" if by == "file" else ""
    file = tmp_path / "config.yaml"
    file.write_text(f"DATASETS: {{CUSTOM: {{mine: {{{block}{values}}}}}}}")
    opts = ["DATASETS.CUSTOM.mine.LABEL_VALUES", "{0: 'back', 7: None, 255: 'thing'}"] if by != "file" else []
    cfg = load_config(file, opts)
    written = tmp_path / "written.yaml"
    written.write_text(cfg.dump())
    for read in (cfg, load_config(written)):
        assert dict(read.DATASETS.CUSTOM.mine.LABEL_VALUES) == {"0": "back", "7": None, "255": "thing"}
