"""tools/demo_load.py: its checks of answers, its slope of memory, and (slow) runs of ten seconds."""

import pytest
from tools import demo_load


ARGUMENTS = ["--seconds", "10", "--threads", "1"]


@pytest.mark.slow
@pytest.mark.parametrize("more", [["--clients", "8"], ["--clients", "3", "--hostile"]], ids=["honest", "hostile"])
def test_every_client_gets_its_answer(demo_model, more, capsys):
    load = demo_load.main([*ARGUMENTS, *more, "--model", str(demo_model)])
    assert load.errors == {} and load.refused == 0
    assert len(load.seconds) >= 3 and len(load.memory) >= 9 and all(memory > 100 for _, memory in load.memory)
    assert 0 <= load.waiting <= 60 and (sum(load.attacks.values()) > 20) == ("--hostile" in more)
    printed = capsys.readouterr().out
    assert f"answers           {len(load.seconds)}\n" in printed and "server            there" in printed


def test_a_wrong_answer_is_an_error():
    load = demo_load.Load("", {}, ["We train ResNet-50", "Ada"], 0.0)
    right = [{"start": 9, "end": 18, "text": "ResNet-50"}]
    assert demo_load.fault(load, "extract", 0, right) is None
    assert demo_load.fault(load, "extract", 0, []) == "another answer than before"
    assert demo_load.fault(load, "extract", 1, right) == "entities of another text"
    assert demo_load.fault(load, "run", 1, '{"error": "stopped"}') == "stopped"
    assert demo_load.fault(load, "run", 1, '{"result": {"text": "We", "entities": {}}}') == "another's answer"


def test_the_slope_is_the_growth_of_memory_in_the_second_half():
    assert demo_load.slope([(n, 100 + n) for n in range(100)]) == pytest.approx(60)  # MB a minute
    assert demo_load.slope([(n, 100 + min(n, 50)) for n in range(100)]) == pytest.approx(0)
