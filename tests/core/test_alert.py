"""What an alert's expression means, and that no other text is one."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lightning_explain import Alert
from lightning_explain.core.alert import parsed

SCORES = [
    "relevance_mass/ig",
    "infidelity_relative/ig@other",
    "sensitivity_max/noise tunnel/ig/2",
    "drift_cosine/NoiseTunnel(Saliency(abs=False), nt_samples=4)",
    "a > b/c",
    "für/重要度",
]
NUMBERS = {"0.3": 0.3, "-1": -1.0, "+2.": 2.0, ".5": 0.5, "1e-3": 1e-3, "12E2": 1200.0}


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize(("sign", "bound"), {">": "above", "<": "below", ">=": "at_least", "<=": "at_most"}.items())
def test_an_expression_is_the_alert_with_its_parts_as_arguments(score: str, sign: str, bound: str) -> None:
    for text, number in NUMBERS.items():
        assert Alert(f"{score} {sign} {text}", action="stop") == Alert(score, action="stop", **{bound: number})
        assert Alert(f" {score}{sign}{text}  for   3 ") == Alert(score, patience=3, **{bound: number})


def test_keys_in_checkpoints_of_earlier_versions_stay_and_all_conditions_have_their_own() -> None:
    assert Alert("a/x", above=0.3, patience=2).key == Alert("a/x > 0.3 for 2").key == "a/x above 0.3 for 2"
    keys = {Alert(f"a/x {sign} 0.3").key for sign in (">", "<", ">=", "<=")}
    assert keys == {f"a/x {words} 0.3 for 1" for words in ("above", "below", "at least", "at most")}


def test_a_copy_with_a_change_keeps_the_rest() -> None:
    alert = Alert("a/x >= 0.3 for 2")
    assert dataclasses.replace(alert, action="stop") == Alert("a/x", at_least=0.3, patience=2, action="stop")


def test_a_name_with_a_comparison_in_it_is_a_name_beside_a_bound() -> None:
    assert Alert("a/x > 1", below=3).metric == "a/x > 1"


BROKEN = {
    "": "compares nothing; write <metric>/<method> > 0.3, with",
    "a/x 0.3": "compares nothing",
    "a/x = 0.3": "compares nothing",
    "> 0.3": "has no score before '>'",
    "a/x >": "has no finite number after '>'",
    "a/x >= x": "has no finite number after '>='",
    "a/x > nan": "has no finite number",
    "a/x > inf": "has no finite number",
    "a/x > 1e999": "has no finite number",
    "a/x > 1_0": "has no finite number",
    "a/x > 30%": "has no finite number",
    "a/x > ٣": "has no finite number",
    "a/x > 0.3 for": "continues after its number",
    "a/x > 0.3 or b/x > 0.2 and": "continues after its number",
    "a/x > 0.3 times 2": "continues after its number",
    "a/x > 0.3 for 0": "has no whole number from 1 to 1000000 after 'for'",
    "a/x > 0.3 for 1.5": "has no whole number",
    "a/x > 0.3 for 99999999999999": "has no whole number",
}


@pytest.mark.parametrize(("expression", "message"), BROKEN.items())
def test_what_is_no_expression_is_refused_with_the_form(expression: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as raised:
        parsed(expression)
    assert "for two explanations in a row" in str(raised.value)


def test_a_patience_that_is_given_twice_is_refused() -> None:
    with pytest.raises(ValueError, match=r"Alert\('a/x > 1 for 2', patience=3\) gives the patience twice"):
        Alert("a/x > 1 for 2", patience=3)
    assert Alert("a/x > 1", patience=3).patience == 3


PIECES = st.sampled_from(
    ["a/b", ">", ">=", "<", "=", "0.3", "1e5", "nan", "for", "2", "-1", " ", "\n", "\x1b[31m", "é"]
)


def refusal(text: str) -> str:
    """Why it is no expression; empty if it is one."""
    try:
        assert Alert(text) == Alert(**parsed(text))
    except ValueError as error:
        return str(error)
    return ""


@settings(deadline=None, derandomize=True)
@given(st.one_of(st.text(min_size=1, max_size=400), st.lists(PIECES, min_size=1, max_size=12).map(" ".join)))
@example("a/b > 1 for " + "9" * 5000)
@example("a/b > " + "9" * 5000)
def test_any_text_is_an_expression_or_refused_in_one_short_line(text: str) -> None:
    why = refusal(text)
    assert len(why) < 400
    assert not why or why.isprintable()
