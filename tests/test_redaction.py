"""Secrets: taken from the environment where they are used, and masked wherever something is shown."""

import json
import logging
from urllib.parse import quote_plus

import pytest

from mergeline.errors import InputError
from mergeline.plan import Checkpoint, Notify
from mergeline.plan_file import PlanError, load_plan
from mergeline.plan_surroundings import address_faults
from mergeline.redaction import expand, redact, redact_path, scrub
from tasks.logs import keep_secrets_out
from tasks.secrets import revealed


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://me:pass@host/x", "https://***@host/x"),
        ("https://me:p@ss@host/x, then https://host/y", "https://***@host/x, then https://host/y"),
        ("postgresql+psycopg2://me:pass@db:5432/mlflow", "postgresql+psycopg2://***@db:5432/mlflow"),
        ("https://h/x?X-Amz-Signature=abc&versionId=3", "https://h/x?X-Amz-Signature=***&versionId=3"),
        ("https://h/x?sv=1&sig=a%2Fb'", "https://h/x?sv=1&sig=***'"),
        ("https://robot:${ROBOT}@host/x?token=${ROBOT}&a=1", "https://robot:${ROBOT}@host/x?token=${ROBOT}&a=1"),
        ("https://${ROBOT}@host/x?token=${ROBOT}x", "https://${ROBOT}@host/x?token=***"),
        ("https://${ROBOT}:pass@host", "https://***@host"),
        ("Max retries exceeded with url: /x?a=1&token=abc (", "Max retries exceeded with url: /x?a=1&token=*** ("),
        ("hf://org/repo@main/model.safetensors", "hf://org/repo@main/model.safetensors"),
        ("models:/chat@champion and me@example.org", "models:/chat@champion and me@example.org"),
    ],
)
def test_urls_lose_their_secrets_and_nothing_else(text, shown):
    assert redact(text) == shown
    assert redact(shown) == shown


def test_secrets_of_the_environment_are_masked_in_every_form(monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "abcd/efgh+ijkl")
    monkeypatch.setenv("HF_TOKEN", "short")
    monkeypatch.setenv("HF_TOKEN_PATH", "/root/.cache/huggingface/token")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "undecided")
    said = "abcd/efgh+ijkl abcd%2Fefgh%2Bijkl short /root/.cache/huggingface/token undecided"
    assert redact(said) == "*** *** short /root/.cache/huggingface/token undecided"


@pytest.mark.parametrize("name", ["PGPASSWORD", "MYSQL_PWD", "SMTP_PASS", "AZURE_STORAGE_CONNECTION_STRING"])
def test_variables_that_tools_call_their_secrets_are_known(monkeypatch, name):
    monkeypatch.setenv(name, "of-this-tool")
    monkeypatch.setenv("PWD", "/where/we/are")
    monkeypatch.setenv("PGPASSFILE", "/home/me/.pgpass")
    assert redact("of-this-tool, /where/we/are, /home/me/.pgpass") == "***, /where/we/are, /home/me/.pgpass"


def test_secrets_are_masked_in_json_in_forms_and_as_python_shows_them(monkeypatch):
    secret = 'say "ü" \\ twice'
    monkeypatch.setenv("ROBOT_PASSWORD", secret)
    said = [json.dumps(secret), json.dumps(secret, ensure_ascii=False), repr(secret), quote_plus(secret)]
    assert [redact(form) for form in said] == ['"***"', '"***"', "'***'", "***"]


@pytest.mark.parametrize("address", ["http://me:long%2Fpassword@host:1", "me:long%2Fpassword@host:1"])
def test_passwords_of_addresses_in_the_environment_are_masked_wherever_they_stand(monkeypatch, address):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    monkeypatch.setenv("SEARCHED", "/one:/two@three/libraries:four@five")
    said = "not a URI: me:long%2Fpassword@host:1; long/password is wrong; /two@three/libraries"
    assert redact(said) == "not a URI: me:***@host:1; *** is wrong; /two@three/libraries"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:${PASSWORD_OF_IT}@host")
    assert redact("${PASSWORD_OF_IT}") == "${PASSWORD_OF_IT}"


def test_references_are_replaced_where_they_are_used_and_masked_from_then_on(monkeypatch):
    monkeypatch.setenv("ROBOT", "robots-password")
    assert expand("https://me:${ROBOT}@host") == "https://me:robots-password@host"
    assert redact("found robots-password") == "found ***"
    with pytest.raises(InputError, match="NOT_SET"):
        expand("https://${NOT_SET}@host")


def test_a_webhook_shows_its_server_alone():
    assert redact_path("https://hooks.example.org/services/T0/B0/xyz") == "https://hooks.example.org/***"
    assert redact_path("${MY_HOOK}") == "${MY_HOOK}"
    assert redact_path("https://[::1/services/T0") == "***"


def test_what_is_written_of_a_plan_has_no_secret(tmp_path):
    spec = Checkpoint(name="one", uri="https://me:pass@host/x.safetensors")
    assert spec.uri == "https://me:pass@host/x.safetensors"
    assert json.loads(spec.model_dump_json())["uri"] == "https://***@host/x.safetensors"
    kept = Checkpoint(name="one", uri="https://me:${ROBOT}@host/x.safetensors").model_dump(mode="json")["uri"]
    assert kept == "https://me:${ROBOT}@host/x.safetensors"  # whoever makes the run again needs the reference
    assert Notify(webhook="https://h/secret").model_dump(mode="json")["webhook"] == "https://h/***"


def test_faults_of_a_plan_show_no_secret_and_name_variables_that_are_missing(tmp_path):
    path = tmp_path / "plan.yaml"
    path.write_text(
        "name: x\ncheckpoints: [{name: a, uri: 'https://me:pass@h/${NOT_SET}', sort: 1}, 'https://me:pass@h/b']\n"
    )
    with pytest.raises(PlanError) as refused:
        load_plan(path)
    assert "me:pass" not in str(refused.value) + str(refused.value.faults)
    assert "checkpoints[0].uri: ${NOT_SET}" in str(refused.value)


def test_an_exception_is_masked_with_all_that_it_came_of():
    try:
        try:
            raise ConnectionError("https://me:pass@host is down", 5)
        except ConnectionError as error:
            raise ValueError("https://me:pass@host") from error
    except ValueError as error:
        scrub(error)
        assert error.args == ("https://***@host",)
        assert error.__cause__.args == ("https://***@host is down", 5)


def test_whatever_an_exception_says_or_holds_is_masked():
    inner, missing = ValueError("at https://me:pass@host"), FileNotFoundError(2, "not there", "https://me:pass@host/x")
    error = ExceptionGroup("both", [inner, missing])
    error.add_note("see https://me:pass@host")
    error.told = {"url": ["https://me:pass@host", b"https://me:pass@host", 5]}
    held = RuntimeError(ConnectionError("https://me:pass@host"))
    held.__context__ = error
    scrub(held)
    assert str(held) == "https://***@host"
    assert (str(inner), str(missing)) == ("at https://***@host", "[Errno 2] not there: 'https://***@host/x'")
    assert error.__notes__ == ["see https://***@host"]
    assert error.told == {"url": ["https://***@host", b"https://***@host", 5]}


def test_log_records_are_masked_where_they_are_made(caplog):
    keep_secrets_out()
    log = logging.getLogger("somebody.else")
    with caplog.at_level(logging.INFO):
        log.info("at %s", "https://me:pass@host")
        try:
            raise ValueError("https://me:pass@host")
        except ValueError:
            log.exception("it failed")
        log.info("%d of %s", 3, "four")
    assert "me:pass" not in caplog.text
    assert caplog.records[-1].args == (3, "four"), "a record without secrets is left as it is"


def test_blocks_of_prefect_may_hold_secrets(prefect_server):
    from prefect.blocks.system import Secret

    Secret(value="kept-in-a-block").save("planted")
    assert revealed("https://me:${block:planted}@host") == "https://me:kept-in-a-block@host"
    with pytest.raises(InputError, match=r"\$\{block:missing\}.*no Secret block"):
        revealed("${block:missing}")


@pytest.mark.parametrize(
    ("uri", "why"),
    [
        ("http://me:secretive@[::1/x.pt", "its server is written wrongly"),
        ("https://me:secretive/x.pt", "the port is no number"),
        ("https:///x.pt", "no server"),
    ],
)
def test_an_address_that_cannot_be_taken_apart_is_a_fault_of_the_plan(uri, why):
    [fault] = address_faults(uri)
    assert fault.endswith(f"leads nowhere ({why}); check it")
    assert not list(address_faults("http://[::1]:8000/x.pt"))
