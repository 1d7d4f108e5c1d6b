"""A matrix says which weights are fetched or missing before the first cell starts."""

import hashlib

import pytest

PLAIN = "https://a.example/models/w.pth"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.delenv("HICL_DOWNLOAD", raising=False)
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def of(bench, weights):
    bench.matrix(overrides={"MODEL.WEIGHTS": weights})


def lines(done):
    assert done.returncode == 0, done.stderr
    return [line for line in done.stdout.splitlines() if line.startswith("weights")]


def test_weights_that_are_here_are_not_mentioned(bench, cache):
    file = bench.write("w.pth", "x")
    for weights in ("", str(file), f"{file}?matching_heuristics=True"):
        of(bench, weights)
        assert lines(bench.run(verb="plan")) == []
    (cache / "models").mkdir(parents=True)
    (cache / "models/w.pth").write_bytes(b"x")
    of(bench, f"{PLAIN}?matching_heuristics=True#sha256={hashlib.sha256(b'x').hexdigest()}")
    assert lines(bench.run(verb="plan")) == []


@pytest.mark.parametrize(
    ("weights", "how", "place"),
    [
        (f"{PLAIN}#sha256={'0' * 64}", "and compared with their checksum", "models"),
        (f"{PLAIN}#sha384={'0' * 96}", "and compared with their checksum", "models"),
        ("detectron2://DeepLab/w.pth", "from Detectron2's model zoo", "detectron2/DeepLab"),
    ],
)
def test_a_plan_says_what_will_be_fetched_and_where_it_can_be_put(bench, cache, weights, how, place):
    of(bench, weights)
    assert lines(bench.run(verb="plan")) == [
        f"weights {weights} will be fetched {how}; without a connection put w.pth into {cache / place} (4 cells)"
    ]
    assert bench.run().returncode == 0


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ("nowhere.pth", "weights nowhere.pth do not exist"),
        (PLAIN, f"weights {PLAIN} are on another machine and have no checksum"),
        ("http://a.example/w.pth", "only https is fetched, not http"),
        (f"{PLAIN}#sha256=12", "must be sha256= and 64 hexadecimal digits"),
    ],
)
def test_weights_that_cannot_be_had_stop_a_run_before_it_starts(bench, weights, message):
    of(bench, weights)
    (line,) = lines(bench.run(verb="plan"))
    assert message in line
    assert line.endswith("(4 cells)")
    done = bench.run()
    assert done.returncode == 2
    assert message in done.stderr
    assert not bench.output.exists()


def test_the_users_word_is_passed_on_to_the_trainings(bench):
    of(bench, PLAIN)
    asked = "import os\nassert os.environ['HICL_DOWNLOAD'] == '1'\n"
    bench.script.write_text(asked + bench.script.read_text())
    (line,) = lines(bench.run("--download", verb="plan"))
    assert "will be fetched without a checksum" in line
    assert bench.run("--download").returncode == 0
