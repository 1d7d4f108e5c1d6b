"""What the built-in runtime's checkpointer reads, refuses by name, and never writes."""

import io
import logging
import pickle
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from hicl_d2.command.errors import InputError
from hicl_d2.lite.checkpoint import DetectionCheckpointer, match_by_suffix
from hicl_d2.lite.utils.file_io import PathManager
from hicl_d2.weights import read_pickle


def _pickled(file: Path, content: Any, protocol: int = 2) -> str:
    file.write_bytes(pickle.dumps(content, protocol))
    return str(file)


def _converted(weights: dict[str, Any]) -> dict[str, Any]:
    return {"model": weights, "__author__": "tests", "matching_heuristics": True}


class _Calls:
    """An object whose pickle calls ``function`` when it is read."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self._reduced = (function, arguments)

    def __reduce__(self) -> Any:
        return self._reduced


# --------------------------------------------------------------------------------------------------
# Reading converted weights


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_arrays_tensors_and_plain_containers_are_read(tmp_path: Path, protocol: int) -> None:
    content = {
        "model": OrderedDict(
            matrix=np.arange(6.0).reshape(2, 3),
            columns=np.asfortranarray(np.ones((2, 3), np.float32)),
            empty=np.zeros((0, 3)),
            flags=np.array([True, False]),
            half=np.ones(2, np.float16),
            tensor=torch.arange(4).reshape(2, 2),
            parameter=nn.Parameter(torch.ones(3)),
            bfloat=torch.ones(2, dtype=torch.bfloat16),
            view=torch.arange(6.0).reshape(2, 3).T,
        ),
        "__author__": "tests",
        "rest": [
            1,
            2.5,
            None,
            "text",
            b"\xff",
            (1,),
            {1},
            frozenset({2}),
            3j,
            np.float64(0.5),
            np.array(["a"]),
        ],
    }
    read = read_pickle(_pickled(tmp_path / "a.pkl", content, protocol))
    assert list(read["model"]) == list(content["model"])
    for name, value in content["model"].items():
        assert type(read["model"][name]) is type(value)
        assert read["model"][name].dtype == value.dtype
        assert np.array_equal(
            torch.as_tensor(read["model"][name]).detach().float(), torch.as_tensor(value).detach().float()
        )
    assert read["rest"] == content["rest"]


def test_a_pickle_of_python_2_is_read(tmp_path: Path) -> None:
    # What Python 2 wrote for {"model": {"w": float32 array [1, 2]}, "__author__": "old"}.
    file = tmp_path / "old.pkl"
    file.write_bytes(
        b"(dp0\nS'model'\np1\n(dp2\nS'w'\np3\ncnumpy.core.multiarray\n_reconstruct\np4\n(cnumpy\nndarray\np5\n(I0\ntp6\n"
        b"S'b'\np7\ntp8\nRp9\n(I1\n(I2\ntp10\ncnumpy\ndtype\np11\n(S'f4'\np12\nI0\nI1\ntp13\nRp14\n(I3\nS'<'\np15\nNNNI-1\n"
        b"I-1\nI0\ntp16\nbI00\nS'\\x00\\x00\\x80?\\x00\\x00\\x00@'\np17\ntp18\nbss"
        b"S'__author__'\np19\nS'old'\np20\ns."
    )
    assert read_pickle(str(file))["model"]["w"].tolist() == [1.0, 2.0]


EVIL: dict[str, tuple[Any, str]] = {
    "a shell": (_Calls(__import__("os").system, "touch ran"), r"(posix|nt)\.system"),
    "eval": (_Calls(eval, "open('ran', 'w')"), r"builtins\.eval|__builtin__\.eval"),
    "an import": (_Calls(__import__, "antigravity"), r"__import__"),
    "attributes": (_Calls(getattr, "a", "upper"), r"getattr"),
    "a file": (_Calls(open, "ran", "w"), r"(io|builtins|_io)\.open"),
    "a class of ours": (InputError("a"), r"hicl_d2\.command\.errors\.InputError"),
    "a module": (nn.Linear(1, 1), r"torch\.nn\.modules\.linear\.Linear"),
    "numpy's loader": (_Calls(np.load, "ran"), r"numpy\.load"),
    "torch's loader": (_Calls(torch.load, "ran"), r"torch\.serialization\.load"),
    "another encoding": (_Calls(__import__("codecs").encode, "a", "rot13"), r"encoding rot13"),
}


@pytest.mark.parametrize("name", EVIL)
@pytest.mark.parametrize("place", ["model", "beside"])
def test_a_file_that_asks_for_more_is_refused_by_name_and_nothing_runs(
    name: str, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    evil, asked = EVIL[name]
    content = _converted({"w": evil}) if place == "model" else {**_converted({}), "evil": [{"a": evil}]}
    with pytest.raises(InputError, match=asked) as caught:
        DetectionCheckpointer(nn.Linear(1, 1)).load(_pickled(tmp_path / "evil.pkl", content))
    assert str(tmp_path / "evil.pkl") in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "ran").exists()


def test_a_tensor_s_bytes_cannot_hide_a_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for as_zip in (True, False):
        hidden = io.BytesIO()
        torch.save(_Calls(open, "ran", "w"), hidden, _use_new_zipfile_serialization=as_zip)
        content = _converted({"w": _Calls(torch.storage._load_from_bytes, hidden.getvalue())})
        with pytest.raises(InputError):
            DetectionCheckpointer(nn.Linear(1, 1)).load(_pickled(tmp_path / "evil.pkl", content))
        assert not (tmp_path / "ran").exists()


def test_a_torch_file_that_asks_for_more_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"model": {"w": _Calls(open, "ran", "w")}}, tmp_path / "evil.pth")
    with pytest.raises(InputError, match=r"evil\.pth ask for \S*open, which is no tensor"):
        DetectionCheckpointer(nn.Linear(1, 1)).load(str(tmp_path / "evil.pth"))
    assert not (tmp_path / "ran").exists()


# --------------------------------------------------------------------------------------------------
# Files that cannot be loaded


@pytest.mark.parametrize("suffix", [".pth", ".pkl"])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_a_truncated_file_is_one_line(suffix: str, share: float, tmp_path: Path) -> None:
    model = nn.Linear(20, 20)
    whole = tmp_path / f"whole{suffix}"
    if suffix == ".pth":
        torch.save({"model": model.state_dict()}, whole)
    else:
        _pickled(whole, _converted({name: value.numpy() for name, value in model.state_dict().items()}))
    content = whole.read_bytes()
    cut = tmp_path / f"cut{suffix}"
    cut.write_bytes(content[: int(share * len(content))])
    with pytest.raises(
        InputError, match=r"cut\S+ cannot be read \(\w+.*\); fetch or save them again"
    ) as caught:
        DetectionCheckpointer(model).load(str(cut))
    assert "\n" not in str(caught.value)


def test_noise_is_one_line(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    for suffix in (".pth", ".pkl"):
        for count in range(30):
            file = tmp_path / f"{count}{suffix}"
            file.write_bytes(generator.bytes(200))
            with pytest.raises(InputError):
                DetectionCheckpointer(nn.Linear(1, 1)).load(str(file))


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("nowhere.pth", r"weights \S*nowhere\.pth do not exist"),
        ("folder", r"weights \S*folder do not exist"),
        ("whole.pth?unknown=1", "unknown option unknown; the one known is matching_heuristics=True"),
        ("catalog://ImageNetPretrained/R-50", "this needs Detectron2"),
        ("a.pyth", r"of pycls.*this needs Detectron2"),
        ("caffe.pkl", r"format of Caffe2.*this needs Detectron2"),
        ("list.pkl", "are of type list; expected names and tensors"),
        ("section.pth", "are of type int; expected names and tensors"),
        ("number.pth", "are of type int; expected names and tensors"),
        ("config.pth", "state is of type dict; expected a tensor"),
        ("unknown://a.pth", r"weights unknown://a\.pth (do not exist|cannot be fetched)"),
    ],
)
def test_what_cannot_be_loaded_is_one_line(path: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "a.pyth").write_bytes(b"")
    torch.save(nn.Linear(1, 1).state_dict(), tmp_path / "whole.pth")
    torch.save(3, tmp_path / "number.pth")
    torch.save({"model": 3}, tmp_path / "section.pth")
    torch.save({"state": {"w": torch.zeros(1)}}, tmp_path / "config.pth")
    _pickled(tmp_path / "caffe.pkl", {"blobs": {"conv1_w": np.zeros(1)}})
    _pickled(tmp_path / "list.pkl", [1])
    with pytest.raises(InputError, match=said) as caught:
        DetectionCheckpointer(nn.Linear(1, 1)).load(path if "://" in path else str(tmp_path / path))
    assert "\n" not in str(caught.value)


def test_an_address_that_does_not_answer_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*arguments: Any, **options: Any) -> str:
        raise OSError("name or service not known")

    monkeypatch.setattr(PathManager, "get_local_path", unreachable)
    with pytest.raises(
        InputError, match=r"weights https://a/b\.pkl cannot be fetched: name or service not known"
    ):
        DetectionCheckpointer(nn.Linear(1, 1)).load("https://a/b.pkl")


def test_a_lost_last_checkpoint_is_named(tmp_path: Path) -> None:
    (tmp_path / "last_checkpoint").write_text("model_0000009.pth")
    with pytest.raises(InputError, match=r"model_0000009\.pth do not exist"):
        DetectionCheckpointer(nn.Linear(1, 1), str(tmp_path)).resume_or_load("", resume=True)


# --------------------------------------------------------------------------------------------------
# Matching by name

parts = st.sampled_from(["a", "b", "ab", "c1", "norm"])
names = st.lists(parts, min_size=1, max_size=4).map(".".join)


@settings(deadline=None, max_examples=200)
@given(st.sets(names, max_size=6), st.sets(names, max_size=6))
def test_each_name_takes_the_longest_of_its_ends(model_names: set[str], weight_names: set[str]) -> None:
    model = {name: torch.zeros(1) for name in model_names}
    weights = {name: torch.full((1,), float(index)) for index, name in enumerate(sorted(weight_names))}
    chosen = {}
    for name in model_names:
        ends = [other for other in weight_names if name == other or name.endswith("." + other)]
        if ends:
            chosen[name] = max(ends, key=len)
    if len(set(chosen.values())) < len(chosen):
        with pytest.raises(InputError, match=r"fits both \S+ and \S+ of the model"):
            match_by_suffix(model, weights)
        return
    expected = {name: weights[source] for name, source in chosen.items()}
    expected.update({name: value for name, value in weights.items() if name not in chosen.values()})
    assert match_by_suffix(model, weights) == expected


def test_weights_that_match_nothing_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    weights = {"x": torch.zeros(1)}
    with caplog.at_level(logging.WARNING, "hicl_d2.lite.checkpoint"):
        assert match_by_suffix({"a": torch.zeros(1)}, weights) == weights
    assert "No weights in checkpoint matched" in caplog.text


def test_a_wrong_shape_is_warned_of_and_keeps_its_name(caplog: pytest.LogCaptureFixture) -> None:
    weights = {"w": torch.zeros(2)}
    with caplog.at_level(logging.WARNING, "hicl_d2.lite.checkpoint"):
        assert match_by_suffix({"a.w": torch.zeros(3)}, weights) == weights
    assert "w has shape (2,) in the weights and (3,) as a.w in the model" in caplog.text


# --------------------------------------------------------------------------------------------------
# Writing


class _State:
    def __init__(self, state: dict[str, Any]) -> None:
        self.state = state

    def state_dict(self) -> dict[str, Any]:
        return self.state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.state = state


def test_numpy_numbers_are_saved_as_python_s(tmp_path: Path) -> None:
    state = _State(
        {"best": np.float64(1.5), "list": [np.int64(2), (np.bool_(True),)], "deep": {"a": np.float32(0.5)}}
    )
    DetectionCheckpointer(nn.Linear(1, 1), str(tmp_path), hook=state).save(
        "a", metric=np.float64(3.0), iteration=7
    )
    resumed = _State({})
    extra = DetectionCheckpointer(nn.Linear(1, 1), str(tmp_path), hook=resumed).resume_or_load("")
    assert extra == {"metric": 3.0, "iteration": 7}
    assert resumed.state == {"best": 1.5, "list": [2, (True,)], "deep": {"a": 0.5}}
    assert type(resumed.state["best"]) is float
    assert type(extra["metric"]) is float


def test_a_module_s_state_keeps_its_versions(tmp_path: Path) -> None:
    bank = nn.BatchNorm1d(2)
    DetectionCheckpointer(nn.Linear(1, 1), str(tmp_path), bank=bank).save("a", metric=np.float64(1.0))
    saved = torch.load(tmp_path / "a.pth", weights_only=True)["bank"]
    assert saved._metadata == bank.state_dict()._metadata


def test_only_the_main_process_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hicl_d2.lite.utils.comm.get_rank", lambda: 1)
    DetectionCheckpointer(nn.Linear(1, 1), str(tmp_path)).save("a")
    assert not list(tmp_path.iterdir())
    DetectionCheckpointer(nn.Linear(1, 1), str(tmp_path), save_to_disk=True).save("a")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.pth", "last_checkpoint"]


def test_nothing_is_written_without_a_folder_and_no_name_leaves_it(tmp_path: Path) -> None:
    DetectionCheckpointer(nn.Linear(1, 1)).save("a")
    with pytest.raises(AssertionError, match="holds no folder"):
        DetectionCheckpointer(nn.Linear(1, 1), str(tmp_path)).save("../a")


def test_missing_pixel_statistics_are_not_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = nn.Linear(1, 1)
    torch.save({"model": model.state_dict()}, tmp_path / "a.pth")
    model.register_buffer("pixel_mean", torch.zeros(3, 1, 1))
    with caplog.at_level(logging.WARNING):
        DetectionCheckpointer(model).load(str(tmp_path / "a.pth"))
    assert not caplog.records


def test_the_query_of_one_load_does_not_reach_the_next(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(1, 1, bias=False))
    torch.save({"weight": torch.full((1, 1), 5.0)}, tmp_path / "a.pth")
    checkpointer = DetectionCheckpointer(model)
    checkpointer.load(f"{tmp_path / 'a.pth'}?matching_heuristics=True")
    assert model[0].weight.item() == 5.0
    nn.init.zeros_(model[0].weight)
    checkpointer.load(str(tmp_path / "a.pth"))
    assert model[0].weight.item() == 0.0
