"""Promotions in a real registry: the alias, the audit log, the way back, and two at once."""

import json
import os
import threading
import time

import pytest
from mlflow import MlflowClient

from mergeline.errors import InputError
from tasks import promotion
from tasks.promotion import decide, promotion_lock, roll_back
from tasks.promotion_record import ABANDONED, EARLIER, INTENTION, audit_log
from tasks.registry import find_alias
from tests.tasks.registered import plan_of, register


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("state")
        patch.setenv("MERGELINE_STATE", str(folder))
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder / '.mlflow' / 'mlflow.db'}")
        yield folder


@pytest.fixture
def client(home):
    return MlflowClient(os.environ["MLFLOW_TRACKING_URI"])


@pytest.fixture
def model(request):
    return "".join(letter for letter in request.node.name if letter not in "[]")


def champion(client, model):
    found = find_alias(client, model, "champion")
    return found and str(found.version)


def lines(model):
    return [line for line in map(json.loads, audit_log().read_text().splitlines()) if line["model"] == model]


def test_a_candidate_becomes_the_champion_a_worse_one_does_not_and_back(client, model, tmp_path):
    plan = plan_of(model, floor=0.5, max_drop=0.3)
    register(None, tmp_path, 0.7, 0.7, 0.7, 0.7, number=1, model=model)
    first = decide.fn(plan)
    assert (first.action, first.before, champion(client, model)) == ("promoted", None, "1")
    assert decide.fn(plan).action == "unchanged"

    register(None, tmp_path, 0.9, 0.9, 0.9, 0.45, number=2, model=model)
    refused = decide.fn(plan)
    assert (refused.action, champion(client, model)) == ("refused", "1")
    [floor, drop] = [line for line in refused.verdicts if line.startswith("REFUSED")]
    assert floor == "REFUSED floor of half-03458: 45.0 ± 1.0 is 5.0 below the floor of 50.0"
    assert "15.0 below the least allowed, 90.0 ± 1.0 of its own model less 30.0" in drop

    register(None, tmp_path, 0.8, 0.8, 0.8, 0.8, number=3, model=model)
    assert (decide.fn(plan).before, champion(client, model)) == ("1", "3")
    register(None, tmp_path, 0.75, 0.8, 0.8, 0.8, number=4, model=model)
    assert "1.2 below the champion's 80.0" in str(decide.fn(plan))

    back = roll_back.fn(plan)
    assert (back.action, back.version, champion(client, model)) == ("rolled back", "3", "1")
    register(None, tmp_path, 0.8, 0.8, 0.8, 0.8, number=5, weights=3, model=model)  # the same weights on the next night
    again = decide.fn(plan)
    assert (again.action, champion(client, model)) == ("refused", "1")
    assert "its weights were rolled back as version 3" in str(again)
    with pytest.raises(InputError, match="version 1 is the first champion"):
        roll_back.fn(plan)

    assert [line["action"] for line in lines(model)] == [
        *("promoted", "refused", "promoted", "refused", "rolled back", "refused")
    ]
    tags = client.get_model_version(model, "3").tags
    said = [json.loads(value)["action"] for key, value in sorted(tags.items()) if key.startswith("mergeline.decision")]
    assert said == ["promoted", "rolled back"]


def test_a_version_that_is_named_is_judged_instead(client, model, tmp_path):
    for number, value in enumerate((0.7, 0.9), start=1):
        register(None, tmp_path, *[value] * 4, number=number, model=model)
    assert decide.fn(plan_of(model), "1").version == champion(client, model) == "1"


def test_the_same_weights_are_no_news_but_on_other_data_they_are_measured_anew(client, model, tmp_path):
    plan = plan_of(model, floor=0.5)
    register(None, tmp_path, *[0.7] * 4, number=1, model=model)
    decide.fn(plan)
    register(None, tmp_path, *[0.7] * 4, number=2, weights=1, model=model)
    assert decide.fn(plan).action == "unchanged"
    register(None, tmp_path, *[0.9] * 4, number=3, data="other", model=model)
    refused = decide.fn(plan)
    assert "measured on other tasks or data" in str(refused)
    register(None, tmp_path, *[0.6] * 4, number=4, weights=1, data="other", model=model)
    assert decide.fn(plan).action == "promoted"  # the champion's own weights, measured on the other data
    assert decide.fn(plan, "3").action == "promoted"


@pytest.mark.parametrize("missing", ["model", "promotion", "registry", "scores", "version"])
def test_what_is_missing_is_told(client, missing, tmp_path):
    model = f"missing-{missing}"
    plan, version = plan_of(model), None
    if missing in ("scores", "version"):
        run = register(None, tmp_path, *[0.7] * 4, number=1, model=model)
        if missing == "version":
            version = "9"
        else:
            next(audit_log().parent.glob(f"artifacts/{run}/artifacts/comparison.json")).unlink()
    sentences = {
        "model": "there is no candidate; merge a plan that says registry",
        "promotion": "promotion: is missing",
        "registry": "registry: is missing",
        "scores": "has no comparison.json in MLflow, so its scores are not known",
        "version": "MLflow says: Model Version .*not found",
    }
    if missing in ("promotion", "registry"):
        plan = plan.model_copy(update={missing: None})
    with pytest.raises(InputError, match=sentences[missing]) as error:
        decide.fn(plan, version)
    assert "\n" not in str(error.value)
    assert champion(client, model) is None


def test_a_model_without_tasks_may_be_promoted_without_gates(client, model, tmp_path):
    plan = plan_of(model, champion=None)
    plan = plan.model_copy(update={"tasks": []})
    register(None, tmp_path, *[0.7] * 4, number=1, model=model)
    assert (decide.fn(plan).verdicts, champion(client, model)) == ([], "1")


def test_of_two_at_once_one_waits_and_judges_by_the_new_champion(client, model, tmp_path, monkeypatch):
    """Both saw no champion; equal scores are not better, so the second must be refused."""
    plan = plan_of(model, champion="better")
    for number in (1, 2):
        register(None, tmp_path, *[0.8] * 4, number=number, model=model)
    inside, go = threading.Event(), threading.Event()
    whole = promotion.carry_out

    def pause(*arguments, **named):
        inside.set()
        assert go.wait(60)
        whole(*arguments, **named)

    monkeypatch.setattr(promotion, "carry_out", pause)
    found = {}
    threads = [threading.Thread(target=lambda n=n: found.update({n: decide.fn(plan, n)})) for n in ("1", "2")]
    threads[0].start()
    assert inside.wait(60)
    waiting = threading.Event()
    monkeypatch.setattr(promotion.time, "sleep", lambda seconds: (waiting.set(), threading.Event().wait(seconds)))
    threads[1].start()
    assert waiting.wait(60)  # it found the lock taken
    assert "2" not in found
    go.set()
    for thread in threads:
        thread.join()
    assert (found["1"].action, found["2"].action, champion(client, model)) == ("promoted", "refused", "1")
    assert found["2"].before == "1"


def test_a_lock_that_a_killed_process_left_is_taken_over_once(client, model):
    name = f"mergeline promotion of {model}"
    client.create_experiment(name)
    with promotion_lock(client, model, lease=0.0) as still_mine:
        still_mine()
        with promotion_lock(client, model, lease=-1.0), pytest.raises(ConnectionError, match="another promotion took"):
            still_mine()
        with pytest.raises(ConnectionError):
            still_mine()
    assert client.get_experiment_by_name(name) is None


def test_a_lock_is_free_again_after_a_failure(client, model):
    with pytest.raises(InputError), promotion_lock(client, model):
        raise InputError("no")
    started = time.monotonic()
    with promotion_lock(client, model):
        assert time.monotonic() - started < promotion.LEASE
    assert client.get_experiment_by_name(f"mergeline promotion of {model}") is None


def test_a_champion_whose_predecessor_was_deleted_goes_further_back(client, model, tmp_path):
    plan = plan_of(model)
    for number, value in enumerate((0.6, 0.7, 0.8), start=1):
        register(None, tmp_path, *[value] * 4, number=number, model=model)
        decide.fn(plan)
    client.delete_model_version(model, "2")
    assert roll_back.fn(plan).champion == champion(client, model) == "1"


# --- failures between two writes -------------------------------------------------------------------------------------

WRITES = ("set_", "delete_", "create_", "rename_")


class Flaky:
    """A client whose nth write fails with the connection: before MLflow has it, or after (the answer is lost)."""

    def __init__(self, client, fails_at, after):
        self.client, self.fails_at, self.after, self.writes = client, fails_at, after, []

    def __getattr__(self, name):
        whole = getattr(self.client, name)
        if not name.startswith(WRITES):
            return whole

        def write(*arguments, **named):
            self.writes.append(name)
            fails = len(self.writes) - 1 == self.fails_at
            if fails and not self.after:
                raise ConnectionError(f"no connection for {name}")
            done = whole(*arguments, **named)
            if fails:
                raise ConnectionError(f"the answer of {name} is lost")
            return done

        return write


def attempts(monkeypatch, client, fails_at, after, action):
    """What `action` returns, tried until it does, where one write fails; and the writes of the first attempt."""
    flaky = Flaky(client, fails_at, after)
    monkeypatch.setattr(promotion, "connect", lambda: flaky)
    while True:
        try:
            return action(), flaky.writes
        except ConnectionError:
            continue


def each_write(monkeypatch, client, action, expect):
    """Let every write of an action fail in turn, in both ways. expect(fails_at, after, decision) checks and resets."""
    decision, undisturbed = attempts(monkeypatch, client, None, False, action)
    expect("no failure", decision)
    for after in (False, True):
        for fails_at, name in enumerate(undisturbed):
            decision, _ = attempts(monkeypatch, client, fails_at, after, action)
            expect(f"{name}, {after=}", decision)
    assert {"create_experiment", "set_model_version_tag", "delete_experiment"} <= set(undisturbed)


@pytest.fixture
def three(client, model, tmp_path):
    """A model with three versions, each better than the one before, the last two champions before the third."""
    for number, value in enumerate((0.6, 0.7, 0.8, 0.1), start=1):
        register(None, tmp_path, *[value] * 4, number=number, model=model)
    for number in "123":
        decide.fn(plan_of(model), number)
    return client


def state_of(client, model):
    """Everything that a decision may change."""
    found = client.get_registered_model(model)
    tags = {str(version.version): dict(version.tags) for version in client.search_model_versions(f"name='{model}'")}
    return champion(client, model), dict(found.tags), tags, lines(model)


def reset(client, model, before):
    """Make the model what it was."""
    version, tags, of_versions, _ = before
    client.set_registered_model_alias(model, "champion", version)
    client.set_registered_model_tag(model, EARLIER, tags[EARLIER])
    for number, old in of_versions.items():
        for name in set(client.get_model_version(model, number).tags) - set(old):
            client.delete_model_version_tag(model, number, name)


def decisions(client, model):
    """The decisions on record with the versions: what all machines see."""
    versions = client.search_model_versions(f"name='{model}'")
    return [key for version in versions for key in version.tags if key.startswith("mergeline.decision.")]


@pytest.mark.parametrize("asked", ["roll back", "promote", "refuse"])
def test_whichever_write_fails_another_attempt_makes_one_decision(asked, three, model, monkeypatch):
    client, plan = three, plan_of(model)
    if asked == "promote":  # from 1 on
        client.set_registered_model_alias(model, "champion", "1")
        client.set_registered_model_tag(model, EARLIER, "[]")
    before = state_of(client, model)
    earlier = json.loads(before[1][EARLIER])
    action = {
        "roll back": lambda: roll_back.fn(plan),
        "promote": lambda: decide.fn(plan, "3"),
        "refuse": lambda: decide.fn(plan, "4"),
    }[asked]
    expected = {
        "roll back": ("rolled back", "2", earlier[:-1]),
        "promote": ("promoted", "3", [*earlier, "1"]),
        "refuse": ("refused", "3", earlier),
    }[asked]

    def expect(when, decision):
        now, tags, of_versions, logged = state_of(client, model)
        if (
            when == "delete_registered_model_tag, after=False"
        ):  # a note that could not be removed: asked again, said again
            assert action() == decision
            now, tags, of_versions, logged = state_of(client, model)
        assert (decision.action, now, json.loads(tags[EARLIER])) == expected, when
        assert INTENTION not in tags, when
        assert ("mergeline.rolled_back" in of_versions["3"]) == (asked == "roll back"), when
        assert len(decisions(client, model)) == 4, when  # three of the fixture
        assert logged == [*before[3], *logged[len(before[3]) : -1], json.loads(decision.model_dump_json())], when
        assert len({line["time"] for line in logged}) == len(logged), when
        reset(client, model, before)
        made.append(decision.time)
        assert len(logged) == len(before[3]) + len(made), when

    made = []
    each_write(monkeypatch, client, action, expect)


def stop_at(monkeypatch, client, name, action):
    """Let the first write of this name fail, and give up."""
    flaky = Flaky(client, -1, False)

    def fail(*_, **__):
        raise ConnectionError("gone")

    setattr(flaky, name, fail)
    with monkeypatch.context() as patch:
        patch.setattr(promotion, "connect", lambda: flaky)
        with pytest.raises(ConnectionError, match="gone"):
            action()


def test_who_asks_for_something_else_finishes_what_was_begun_first(three, model, monkeypatch):
    stop_at(monkeypatch, three, "set_registered_model_alias", lambda: roll_back.fn(plan_of(model)))
    assert champion(three, model) == "3"
    refused = decide.fn(plan_of(model), "4")
    assert (refused.action, refused.before, champion(three, model)) == ("refused", "2", "2")
    assert [line["action"] for line in lines(model)][3:] == ["rolled back", "refused"]


def test_what_somebody_else_finished_is_not_done_again_by_the_next_attempt(three, model, monkeypatch):
    stop_at(monkeypatch, three, "set_registered_model_alias", lambda: roll_back.fn(plan_of(model)))
    assert decide.fn(plan_of(model), "4").action == "refused"  # after it has gone back to version 2
    assert roll_back.fn(plan_of(model)).champion == champion(three, model) == "2"
    assert roll_back.fn(plan_of(model)).champion == champion(three, model) == "1"  # asked for once more
    assert [line["action"] for line in lines(model)][3:] == ["rolled back", "refused", "rolled back"]


def test_who_lost_the_lock_within_a_decision_writes_nothing_more(three, model, monkeypatch):
    """It slept for longer than the lease; somebody else has finished its decision and made another one."""
    slow = Flaky(three, -1, False)

    def and_sleep(*arguments):
        three.set_registered_model_alias(*arguments)
        with monkeypatch.context() as patch:
            patch.setattr(promotion, "connect", lambda: three)
            patch.setattr(promotion, "promotion_lock", lambda client, name: promotion_lock(client, name, lease=-1.0))
            assert decide.fn(plan_of(model, champion=None), "4").action == "promoted"

    slow.set_registered_model_alias = and_sleep
    with monkeypatch.context() as patch:
        patch.setattr(promotion, "connect", lambda: slow)
        with pytest.raises(ConnectionError, match="another promotion took over"):
            roll_back.fn(plan_of(model))
    assert json.loads(three.get_registered_model(model).tags[EARLIER]) == ["1", "2"]
    again = roll_back.fn(plan_of(model))
    assert (again.action, again.champion, champion(three, model)) == ("rolled back", "2", "4")


def test_what_was_begun_is_not_finished_where_somebody_moved_the_alias_meanwhile(three, model, monkeypatch, caplog):
    stop_at(monkeypatch, three, "set_registered_model_alias", lambda: roll_back.fn(plan_of(model)))
    three.set_registered_model_alias(model, "champion", "1")
    with pytest.raises(InputError, match="version 1 is the first champion"):
        three.set_registered_model_tag(model, EARLIER, "[]")
        roll_back.fn(plan_of(model))
    assert "moved by hand" in caplog.text
    [why] = [why for name, why in three.get_model_version(model, "3").tags.items() if name.startswith(ABANDONED)]
    assert "moved by hand" in why
    assert INTENTION not in three.get_registered_model(model).tags
    three.set_registered_model_tag(model, INTENTION, "{")
    assert decide.fn(plan_of(model, champion=None), "2").action == "promoted"
    assert champion(three, model) == "2"


def test_a_lock_that_could_not_be_released_is_taken_again_by_the_same_process(client, model, monkeypatch):
    flaky = Flaky(client, 1, False)  # rename_experiment
    for _ in range(2):
        with promotion_lock(flaky, model):
            pass
    assert flaky.writes.count("create_experiment") == 3
