"""Errors and problems as users read them."""

from acestep.core.errors import Problem, UserError, did_you_mean


def test_message_and_remedy_are_one_text() -> None:
    error = UserError("The file is empty.", fix="Choose another.", detail="0 bytes")
    assert str(error) == "The file is empty. Choose another."
    assert error.detail not in str(error)
    assert str(UserError("Only this.")) == "Only this."


def test_nearest_name_is_suggested() -> None:
    known = ["learning_rate", "rank", "epochs"]
    assert did_you_mean("learning_rat", known) == ' Did you mean "learning_rate"?'
    assert did_you_mean("zzz", known) == ""
    assert did_you_mean("rank", []) == ""


def test_problem_names_its_subject() -> None:
    problem = Problem("a.mp3", "is empty", "warning")
    assert str(problem) == "a.mp3: is empty"
    assert problem.to_dict() == {"subject": "a.mp3", "message": "is empty", "severity": "warning"}
