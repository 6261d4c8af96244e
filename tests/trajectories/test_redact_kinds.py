"""500 made-up secrets of 28 kinds: found wherever they stand, and harmless texts left alone."""

import base64
import json
import os
import random
import string
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from secret_kinds import KINDS, PLACES, benign, forms, secrets

from agentloop.records import (
    Completion,
    Episode,
    Message,
    Node,
    Request,
    Task,
    ToolCall,
    ToolSpec,
    Trajectory,
    Usage,
)
from agentloop.trajectories.codec import from_json, to_json
from agentloop.trajectories.recorder import Recorder
from agentloop.trajectories.redact import Redactor, guarded
from agentloop.trajectories.redacted_log import RedactedLines, RedactedLog

SECRETS = secrets(500, seed=1)
BY_SHAPE = Redactor({})
PASSWORD = "correct-horse-battery-staple-9"
KNOWN = Redactor({"THE_PASSWORD": PASSWORD})


def leaks(redact: Redactor, value: object, unwanted: list[bytes]) -> bool:
    """What the write path does: asked by the JSON first."""
    written = json.dumps(value, ensure_ascii=False).encode()
    if redact.suspects(written):
        written = json.dumps(redact(value), ensure_ascii=False).encode()  # type: ignore[arg-type]
    return any(form in written for form in unwanted)


def test_by_shape_at_least_98_percent_are_found() -> None:
    assert len(KINDS) >= 25
    found = [
        not leaks(BY_SHAPE, place(text), forms(secret, text))
        for number, (_, secret, text) in enumerate(SECRETS)
        for at, place in enumerate(PLACES.values())
        if (number + at) % 3 == 0  # every kind meets every place
    ]
    assert len(found) > 1500 and sum(found) / len(found) >= 0.98


def test_known_values_are_found_always() -> None:
    """Without a word around them that would tell what they are, and letters only, too."""
    dice = random.Random(3)
    plain = ["".join(dice.choices(string.ascii_lowercase + ' "\\é\n', k=dice.randrange(10, 40)))
             for _ in range(100)]  # fmt: skip
    values = [*(secret for _, secret, _ in SECRETS), *plain]
    redact = Redactor({f"K{number}": value for number, value in enumerate(values)})
    for number, value in enumerate(values):
        for at, place in enumerate(PLACES.values()):
            if (number + at) % 3 == 0:
                assert not leaks(redact, place(value), forms(value, value)), (value, at)


def test_at_most_1_percent_of_harmless_texts_change() -> None:
    redact = Redactor({f"K{number}": secret for number, (_, secret, _) in enumerate(SECRETS)})
    for one in (BY_SHAPE, redact):
        texts = list(benign(5000, seed=2))
        assert sum(one.text(text) != text for text in texts) <= 50


@settings(deadline=None, max_examples=200)
@given(st.data())
def test_a_known_value_that_is_cut_leaves_nothing(data: st.DataObject) -> None:
    value = data.draw(st.text(string.ascii_letters + string.digits, min_size=8, max_size=60))
    cut = data.draw(st.integers(1, len(value) - 1))
    chunks = data.draw(st.booleans())
    redact = Redactor({"CUT": value})
    parts = [f"the key is {value[:cut]}", f"{value[cut:]} and so on"]
    body: object = parts if chunks else [{"role": "user", "content": part} for part in parts]
    assert redact.suspects(json.dumps(body).encode())
    clean = redact(body)  # type: ignore[arg-type]
    texts = clean if chunks else [one["content"] for one in clean]  # type: ignore[union-attr, index, call-overload]
    assert texts == ["the key is [redacted:CUT]", "[redacted:CUT] and so on"]


def test_a_key_that_is_streamed_in_chunks_leaves_nothing() -> None:
    for _, secret, text in (one for one in SECRETS if one[0] in ("openai", "github", "slack")):
        for size in (4, 7, 16):
            chunks = [text[at : at + size] for at in range(0, len(text), size)]
            body = [{"choices": [{"delta": {"content": chunk}}]} for chunk in chunks]
            clean = BY_SHAPE(body)  # type: ignore[arg-type]
            said = "".join(one["choices"][0]["delta"]["content"] for one in clean)  # type: ignore[union-attr, index, call-overload]
            assert secret not in said and "[redacted:" in said


@pytest.mark.parametrize("cut", [5, 20, 60, 130, 200, 225, -3])
def test_a_private_key_in_two_messages_leaves_nothing(cut: int) -> None:
    pem = next(secret for kind, secret, _ in SECRETS if kind == "pem")
    asked = [f"The first part: {pem[:cut]}", f"{pem[cut:]} was the rest.", "Don't tell."]
    body = [{"role": "user", "content": text} for text in asked]
    assert BY_SHAPE.suspects(json.dumps(body).encode())
    first, second, third = (one["content"] for one in BY_SHAPE(body))  # type: ignore[union-attr, index, call-overload, arg-type]
    assert first == "The first part: [redacted:private_key]"
    assert second == "[redacted:private_key] was the rest." and third == "Don't tell."


def test_half_of_a_known_value_at_the_end_of_a_text_goes() -> None:
    """An error's text is cut at 300 characters, wherever that is."""
    half = f"wrong password {PASSWORD}"[:-5]
    assert KNOWN.text(half) == "wrong password [redacted:THE_PASSWORD]"


@settings(deadline=None)
@given(st.integers(0, 499), st.sampled_from(sorted(PLACES)))
def test_redacting_twice_is_redacting_once(number: int, place: str) -> None:
    clean = BY_SHAPE(PLACES[place](SECRETS[number][2]))  # type: ignore[arg-type]
    assert BY_SHAPE(clean) == clean


def test_a_value_without_a_secret_is_the_same_object() -> None:
    body = {"a": ["text", {"b": [1, 2.5]}], "c": None, "e": "", "f": [], "g": {}}
    assert BY_SHAPE(body) is body  # type: ignore[comparison-overlap, arg-type]
    secret = {"clean": body, "key": SECRETS[0][2]}
    clean = BY_SHAPE(secret)  # type: ignore[arg-type]
    assert clean["clean"] is body and clean != secret  # type: ignore[index, call-overload]


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "part",
    ["sk-", "eyJ-", "SG.-", "a", "%41", "://", "token=", "hooks.slack.com/services/", "Basic ",
     "-----BEGIN PRIVATE KEY-----", "cookie: a=b; ", "\\n", "QUtJQUFBQUFB", "Authorization: "],
)  # fmt: skip
def test_hostile_texts_end(part: str) -> None:
    assert Redactor({"K": PASSWORD}).text(part * (200_000 // len(part)) + " sk-" + PASSWORD)


NAMES = ["password", "passwd", "passphrase", "pwd", "secret", "token", "cookie"] + [
    f"{one}{sign}key"
    for one in ["api", "access", "account", "auth", "private", "secret", "signing", "encryption"]
    for sign in ("", "_", "-")
]


@pytest.mark.parametrize("sign", ["=", ": ", " = ", "\t= ", "\n  = ", " => ", '": "', "': '"])
def test_every_name_of_an_assignment_is_seen_by_the_cheap_test(sign: str) -> None:
    for name in (*NAMES, *(name.title() for name in NAMES), "privateKey", "authKey"):
        value = "sid=q7R2k9Wx4T" if name.lower() == "cookie" else "q7R2k9Wx4T"
        assert value not in BY_SHAPE.text(f"my {name}{sign}{value} there"), name


def test_an_entry_of_an_object_is_an_assignment() -> None:
    headers = {"X-Api-Key": "q7R2k9Wx4T!", "Authorization": "q7R2k9Wx4Tb3N8m5Zc"}
    call = {"name": "login", "arguments": {"user": "anna", "dbPassword": "q7R2k9Wx4T"}}
    body = {"calls": [call], "headers": headers}
    assert BY_SHAPE.suspects(json.dumps(body).encode())
    clean = BY_SHAPE(body)  # type: ignore[arg-type]
    assert clean == {
        "calls": [call | {"arguments": {"user": "anna", "dbPassword": "[redacted:secret]"}}],
        "headers": {"X-Api-Key": "[redacted:secret]", "Authorization": "[redacted:authorization]"},
    }
    assert BY_SHAPE(clean) is clean  # type: ignore[comparison-overlap]
    plain = {"password": "not telling", "token": "CancellationToken", "api_key": "get_key(1)"}
    assert BY_SHAPE(plain) is plain  # type: ignore[comparison-overlap, arg-type]


# --- token ids ----------------------------------------------------------------------------------


def reply(text: str, ids: tuple[int, ...] = (7, 8)) -> Completion:
    return Completion(
        message=Message(role="assistant", content=text, token_ids=ids), finish_reason="stop",
        usage=Usage(calls=1), model="m", prompt_ids=(1, 2, 3), completion_ids=ids,
        logprobs=(-0.5,) * len(ids),
    )  # fmt: skip


def recorded(*turns: tuple[str, str]) -> Trajectory:
    recorder = Recorder()
    for user, answer in turns:
        recorder.add(Request(messages=(Message(role="user", content=user),)), reply(answer))
    return recorder.trajectory()


@pytest.mark.parametrize("where", ["user", "assistant"])
def test_a_trajectory_that_holds_a_secret_keeps_no_ids_and_others_do(where: str) -> None:
    bad = recorded((f"it is {PASSWORD}", "ok") if where == "user" else ("hm", f"use {PASSWORD}"))
    good = recorded(("what is 2 + 2?", "4"))
    episode = Episode(
        id="ep-1", task=Task(id="t", prompt="p"), bundle="b", purpose="collect", run="r", seed=0,
        trajectories=(good, bad), answer="4",
    )  # fmt: skip
    stored = from_json(Episode, KNOWN(to_json(episode)))
    assert stored.trajectories[0] == good and good.nodes[-1].token_ids == (7, 8)
    kept = stored.trajectories[1]
    assert kept.redacted and not good.redacted
    assert [node.message.role for node in kept.nodes] == ["user", "assistant"]
    assert all(node.token_ids == () and node.logprobs is None for node in kept.nodes)
    assert PASSWORD not in repr(stored)


def test_a_stored_reply_that_holds_a_secret_keeps_no_ids() -> None:
    kept = from_json(Completion, KNOWN(to_json(reply(f"use {PASSWORD}"))))
    assert kept.redacted and kept.message.content == "use [redacted:THE_PASSWORD]"
    assert (kept.prompt_ids, kept.completion_ids, kept.logprobs) == (None, None, None)
    assert kept.message.token_ids is None
    fine = reply("use the password")
    assert from_json(Completion, KNOWN(to_json(fine))) == fine


ASKED = Message(role="user", content="go on")
CALL = ToolCall(id="c", name="login", arguments={"password": PASSWORD})


@pytest.mark.parametrize(
    "request_",
    [
        Request(messages=(Message(role="user", content=f"it is {PASSWORD}"), ASKED)),
        Request(messages=(Message(role="assistant", content="", tool_calls=(CALL,)), ASKED)),
        Request(
            messages=(ASKED,),
            tools=(ToolSpec(name="t", description=f"log in by {PASSWORD}", parameters={}),),
        ),
    ],
)
def test_ids_of_a_prompt_that_holds_a_secret_are_given_to_nobody(request_: Request) -> None:
    """A stored reply has its prompt's ids without the prompt's text."""
    given = guarded(request_, reply("fine"), KNOWN)
    assert given == replace(
        reply("fine"), prompt_ids=None, completion_ids=None, logprobs=None, redacted=True,
        message=Message(role="assistant", content="fine"),
    )  # fmt: skip
    recorder = Recorder()
    recorder.add(request_, given)
    assert recorder.trajectory().redacted
    assert not any(node.token_ids for node in recorder.trajectory().nodes)
    harmless = Request(messages=(ASKED,))
    assert guarded(harmless, reply("fine"), KNOWN) == reply("fine")


def test_ids_of_a_fork_of_a_redacted_trajectory_go_too() -> None:
    nodes = (
        Node(parent=None, message=Message(role="user", content="hello"), token_ids=(1,)),
        Node(
            parent=0, message=Message(role="assistant", content="hi"), token_ids=(2,), sampled=True
        ),
        Node(parent=0, message=Message(role="assistant", content=PASSWORD), sampled=True),
    )
    kept = from_json(Trajectory, KNOWN(to_json(Trajectory(nodes=nodes))))
    assert kept.redacted and not any(node.token_ids for node in kept.nodes)


# --- logs of other processes --------------------------------------------------------------------


def test_lines_of_a_child_lose_keys_that_span_them() -> None:
    pem = next(secret for kind, secret, _ in SECRETS if kind == "pem")
    told = f"start\nload {pem}\nTraceback: {PASSWORD}\ndone\n".encode()
    clean = RedactedLines(KNOWN)
    said = b"".join(map(clean, told.splitlines(keepends=True)))
    assert said == (
        b"start\nload [redacted:private_key]\nTraceback: [redacted:THE_PASSWORD]\ndone\n"
    )


def test_a_child_writes_to_a_file_through_the_redactor(tmp_path: Path) -> None:
    log = RedactedLog(tmp_path / "logs" / "server.log", KNOWN)
    os.write(log.pipe, b"listening\nkey \xff " + PASSWORD.encode())
    log.release()
    log.wait(10)
    assert (tmp_path / "logs" / "server.log").read_bytes() == (
        b"listening\nkey \xff [redacted:THE_PASSWORD]"
    )


def test_base64_is_found_at_every_offset() -> None:
    for offset in range(3):
        code = base64.b64encode(b"x" * offset + PASSWORD.encode() + b"yz").decode()
        for glued in (code, f"n{code}", f"data:{code}", code.replace("+", "-").rstrip("=")):
            assert "[redacted:" in KNOWN.text(f"see {glued} there"), (offset, glued)


def test_a_short_known_value_is_found_in_base64_at_every_offset() -> None:
    redact = Redactor({"PIN": "s3same-0pen"})
    for offset in range(3):
        code = base64.b64encode(b"x" * offset + b"s3same-0pen").decode()
        assert len(code) < 24 and "[redacted:PIN]" in redact.text(f"see {code} there")


def test_a_key_in_base64_is_found_behind_what_looks_like_a_part_of_it() -> None:
    code = base64.b64encode(b"the key is AKIA" + b"Q7R2" * 4).decode()
    for before in ("n", "\\n", "ab", "key/"):
        assert BY_SHAPE.suspects(f"{before}{code}".encode())
        assert BY_SHAPE.text(f"{before}{code}").endswith("[redacted:base64]")


def test_basic_credentials_are_known_by_what_they_decode_to() -> None:
    code = base64.b64encode(b"user:open sesame").decode()
    assert BY_SHAPE.text(f"curl -H 'Basic {code}'") == "curl -H 'Basic [redacted:basic_auth]'"
    assert BY_SHAPE.text("Basic arithmetic") == "Basic arithmetic"


@given(st.lists(st.text(max_size=60), max_size=8), st.lists(st.sampled_from(SECRETS), max_size=3))
def test_many_are_suspected_as_one_by_one(
    harmless: list[str], some: list[tuple[str, str, str]]
) -> None:
    """Looked at together, nothing that one text holds is missed, and its neighbours are not."""
    texts = [*harmless, *(text for _, _, text in some), *(one[::-1] for one in harmless)]
    random.Random(len(texts)).shuffle(texts)
    many = [json.dumps(text).encode() for text in texts]
    for redact in (BY_SHAPE, KNOWN):
        assert redact.suspects_each(many) == [redact.suspects(one) for one in many]


def test_all_kinds_are_suspected_among_many() -> None:
    many = [json.dumps(text).encode() for _, _, text in SECRETS]
    many += [json.dumps(text).encode() for text in benign(2000, seed=5)]
    assert BY_SHAPE.suspects_each(many) == [BY_SHAPE.suspects(one) for one in many]
