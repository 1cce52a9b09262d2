"""A part of the campaigns about text that others write, small enough for every run of the tests."""

import pytest
from campaigns import hostile_answers, server_behaviours
from campaigns.hostile_answers import Obedient, hostile, naming_orders, turned_names, turned_verdicts

from auditkit.consensus.llm_judge import LLMJudge, judge_prompt
from auditkit.findings.llm_names import name_in, naming_prompt

pytest.importorskip("openai", reason="openai is not installed: pip install auditkit[endpoint]")


def test_nothing_a_server_does_runs_leaks_hangs_or_misleads():
    assert len(server_behaviours.BEHAVIOURS) >= 60
    assert server_behaviours.campaign(server_behaviours.chosen(24, seed=1)) == {}


def test_the_campaign_would_notice(monkeypatch):
    """Without what keeps keys and escapes in, it finds them outside."""
    from auditkit import redact, text
    from auditkit.models import openai

    monkeypatch.setattr(openai, "redacted", lambda said: said)
    monkeypatch.setattr(openai, "without_headers", lambda said: said)
    monkeypatch.setattr(text, "for_a_person", lambda said: said)
    monkeypatch.setattr(redact, "_secrets", list)
    names = ("an answer with the key", "403 with the key", "an error that sets the title")
    from auditkit import errors

    monkeypatch.setattr(errors, "for_a_person", lambda said: said)
    faults = server_behaviours.campaign({name: server_behaviours.BEHAVIOURS[name] for name in names})
    assert set(faults) == set(names)


def test_orders_in_answers_turn_neither_verdicts_nor_names_of_whoever_obeys_all_outside_quotation_marks():
    assert turned_verdicts(LLMJudge("miniature:gemma3", lambda *_: Obedient()), hostile()) == (0, 40)
    assert turned_names(Obedient(), naming_orders()) == (0, 40)


def test_no_answer_closes_its_quotation_marks():
    for question, other, _, answer in hostile():
        assert judge_prompt(question, other, answer).splitlines()[-1].count('"') == 6
    for answer in naming_orders():
        asked = naming_prompt(hostile_answers.ordered_type(answer))
        assert asked.splitlines()[-1].count('"') == 4


@pytest.mark.parametrize("reply", ["\x1b[31mred\x1b[0m", "clo\u202eck", "see www.example", "a\\b", "half\ud83d name"])
def test_a_name_holds_nothing_that_hides_or_commands(reply):
    assert name_in(reply) is None
