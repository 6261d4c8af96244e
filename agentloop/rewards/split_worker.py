"""What runs inside the sandbox beside a candidate: a request in, an answer out, nothing decided.

In: a line `{"id", "arguments"}`. Out: a line `{"id", "v"}` or `{"id", "error": [names]}`. It is
sent as text and never imported. It holds no expected value, so a candidate that takes it over can
still do nothing better than to compute. Kept to what every interpreter here understands.
"""


def outcome_of(function, line):  # type: ignore[no-untyped-def]
    """`line` answered by `function`; an odd result is an error like any other."""
    import json

    request = json.loads(line)
    reply = {"id": request["id"]}
    if "arguments" not in request:  # the first and the last request: is it there?
        known = function is not None
        return json.dumps({**reply, "v": None} if known else {**reply, "error": ["NameError"]})
    try:
        value = function(*request["arguments"])
    except Exception as error:
        kinds = {
            "ValueError": ValueError, "TypeError": TypeError, "LookupError": LookupError,
            "KeyError": KeyError, "IndexError": IndexError, "ArithmeticError": ArithmeticError,
        }  # fmt: skip
        names = [name for name, kind in kinds.items() if isinstance(error, kind)]
        return json.dumps({**reply, "error": [type(error).__name__, *names]})
    try:
        return json.dumps({**reply, "v": value}, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        return json.dumps({**reply, "error": ["NotJSON"]})
