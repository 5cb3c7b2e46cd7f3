"""Questions made from the Factbook, and the slice of WebQuestions that it answers."""

import pytest

from realm_min.training.factbook_questions import factbook_questions


@pytest.fixture(scope="module")
def questions():
    return factbook_questions(0)


def test_there_are_many_of_many_fields(questions):
    assert len(questions) >= 12_000
    assert len({question.field for question in questions}) >= 60
