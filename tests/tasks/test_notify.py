"""Messages about the end of a run: who gets them, what is in them, and that none of it can spoil a run."""

import logging
import socket

import pytest

from mergeline.plan import Notify
from tasks import notify as module
from tasks.notify import notify
from tests.operations import hook


@pytest.fixture
def told():
    with hook.serving() as server:
        yield server


def test_the_message_has_a_sentence_and_the_facts(told, monkeypatch):
    monkeypatch.setenv("MY_HOOK", told.url)
    assert notify(Notify(webhook="${MY_HOOK}"), "failure", {"plan": "teams", "error": "NaN", "mlflow_run": None})
    (message,) = told.messages
    assert message.pop("path").endswith("/secret-of-the-hook")
    assert message == {
        "text": "mergeline: teams ended in failure. error: NaN",
        "end": "failure",
        "plan": "teams",
        "error": "NaN",
    }


def test_success_is_told_where_it_is_asked_for(told, monkeypatch):
    monkeypatch.setenv("MERGELINE_WEBHOOK", told.url)
    assert not notify(Notify(), "success", {"plan": "teams"})
    assert notify(Notify(on=["success"]), "success", {"plan": "teams"})
    assert not notify(Notify(on=["success"]), "failure", {"plan": "teams"})
    assert [message["end"] for message in told.messages] == ["success"]


def test_nobody_is_told_where_nobody_is_named(monkeypatch):
    monkeypatch.delenv("MERGELINE_WEBHOOK", raising=False)
    assert not notify(Notify(), "failure", {})


@pytest.mark.parametrize(
    ("answers", "attempts", "arrives"), [([503, 429], 3, True), ([500] * 9, 3, False), ([404], 1, False)]
)
def test_busy_servers_are_asked_again_and_refusals_are_not(told, caplog, answers, attempts, arrives):
    told.answers.extend(answers)
    pauses = []
    with caplog.at_level(logging.WARNING):
        assert notify(Notify(webhook=told.url), "failure", {"plan": "teams"}, pause=pauses.append) is arrives
    assert (told.attempts, pauses) == (attempts, [1.0, 2.0][: attempts - 1])
    assert "secret-of-the-hook" not in caplog.text
    assert arrives or f"http://127.0.0.1/*** was not told how the run ended: it answered {answers[-1]}" in caplog.text


def test_a_lost_server_costs_a_warning(caplog):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{probe.getsockname()[1]}/T0/secret-path"
    with caplog.at_level(logging.WARNING):
        assert not notify(Notify(webhook=url), "failure", {}, pause=lambda _seconds: None)
    assert "was not told how the run ended: ConnectionError" in caplog.text
    assert "secret-path" not in caplog.text


@pytest.mark.parametrize("webhook", ["${NO_SUCH_VARIABLE}", "not an address", "http://[::bad/x"])
def test_an_address_that_leads_nowhere_costs_a_warning(webhook, caplog):
    with caplog.at_level(logging.WARNING):
        assert not notify(Notify(webhook=webhook), "failure", {}, pause=lambda _seconds: None)
    assert caplog.text


def test_no_answer_is_not_waited_for_long():
    assert module.TIMEOUT * module.ATTEMPTS <= 15
