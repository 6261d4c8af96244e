"""Kinds of tasks: what is asked, how an expert does it, and what must be so in the end.

In: the tables at the start. Out: three sibling tasks of one procedure: the arguments of each and
its goal. The decision worth knowing: a goal is worked out from the tables here, in other words than
the expert's program, so that the one checks the other (`tests/worlds/test_apps.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from string import Formatter
from typing import Any, TypeAlias

from agentloop.worlds.apps.calls import Record, Tables
from agentloop.worlds.apps.goals import Goal
from agentloop.worlds.apps.setting import DAYS, FOLDERS, GROUPS

SIBLINGS = 3
Case: TypeAlias = tuple[dict[str, Any], Goal]


@dataclass(frozen=True)
class Family:
    """`ask` and `body` are in terms of `parameters`; `body` is Python over the apps' calls, and
    returns the answer where there is one."""

    name: str
    ask: str
    body: str
    cases: Callable[[Random, Tables], list[Case]]
    """Up to `SIBLINGS` different cases; fewer when the tables have no more."""

    @property
    def parameters(self) -> tuple[str, ...]:
        """Of the function, in order: that in which they are asked."""
        return tuple(dict.fromkeys(name for _, name, _, _ in Formatter().parse(self.ask) if name))

    def program(self, arguments: dict[str, Any]) -> str:
        """The expert's whole program: a function of the parameters, called and ended."""
        inside = "\n".join(f"    {line}" if line else "" for line in self.body.strip().split("\n"))
        return f"def {self.name}({', '.join(arguments)}):\n{inside}\n\n{self.use(arguments)}"

    def use(self, arguments: dict[str, Any]) -> str:
        """The same where the function is known already."""
        called = f"{self.name}({', '.join(map(repr, arguments.values()))})"
        return f"finish(answer=str({called}))" if "return" in self.body else f"{called}\nfinish()"


def _records(tables: Tables, table: str, **fields: str) -> list[tuple[str, Record]]:
    return [
        (key, one) for key, one in tables[table].items()
        if all(one[name] == value for name, value in fields.items())
    ]  # fmt: skip


def _sent(to: str, text: str) -> Any:
    return {"sender": "me", "to": to, "text": text, "folder": "sent"}


def _goal(
    change: dict[str, dict[str, Any]] | None = None, add: dict[str, list[Any]] | None = None,
    remove: tuple[str, ...] = (), answer: str | None = None,
) -> Goal:  # fmt: skip
    return Goal(change=change or {}, add=add or {}, remove=remove, answer=answer)


def _reschedule(random: Random, tables: Tables) -> list[Case]:
    found = []
    for key, event in random.sample(sorted(tables["events"].items()), SIBLINGS):
        day = random.choice([day for day in DAYS if day != event["day"]])
        told = [_sent(guest, f"{event['title']} is now on {day}") for guest in event["guests"]]
        goal = _goal({f"events/{key}": {"day": day}}, {"messages": told})
        found.append(({"title": event["title"], "day": day}, goal))
    return found


def _invite(random: Random, tables: Tables) -> list[Case]:
    found = []
    events = random.sample(sorted(tables["events"].items()), SIBLINGS)
    for (key, event), group in zip(events, random.sample(GROUPS, SIBLINGS), strict=True):
        more = [
            one["name"] for _, one in _records(tables, "contacts", group=group)
            if one["name"] not in event["guests"]
        ]  # fmt: skip
        goal = _goal({f"events/{key}": {"guests": event["guests"] + more}})
        if more:
            found.append(({"group": group, "title": event["title"]}, goal))
    return found


def _cheapest(tables: Tables, kind: str) -> tuple[str, Record]:
    offers = [item for item in _records(tables, "products", kind=kind) if item[1]["stock"] > 0]
    return min(offers, key=lambda item: int(item[1]["price"]))


def _bought(tables: Tables, wanted: list[tuple[str, int]]) -> Goal:
    """The goal of having bought so many of the cheapest of each kind."""
    change: dict[str, dict[str, Any]] = {}
    orders, coins = [], tables["wallet"]["me"]["coins"]
    for kind, count in wanted:
        key, product = _cheapest(tables, kind)
        cost = count * product["price"]
        coins -= cost
        change[f"products/{key}"] = {"stock": product["stock"] - count}
        orders.append({"product": key, "kind": kind, "count": count, "cost": cost, "state": "open"})
    return _goal({**change, "wallet/me": {"coins": coins}}, {"orders": orders})


def _buy(random: Random, tables: Tables) -> list[Case]:
    kinds = sorted({product["kind"] for product in tables["products"].values()})
    return [
        ({"kind": kind, "count": count}, _bought(tables, [(kind, count)]))
        for kind in random.sample(kinds, SIBLINGS)
        for count in [random.randint(2, 5)]
    ]


def _shopping(random: Random, tables: Tables) -> list[Case]:
    found = []
    for _, note in random.sample(_records(tables, "notes", tag="shopping"), SIBLINGS):
        lines = [line.split(" x ") for line in note["text"].split("\n")]
        goal = _bought(tables, [(kind, int(count)) for count, kind in lines])
        found.append(({"title": note["title"]}, goal))
    return found


def _cancel(random: Random, tables: Tables) -> list[Case]:
    kinds = sorted({order["kind"] for _, order in _records(tables, "orders", state="open")})
    found = []
    for kind in random.sample(kinds, min(SIBLINGS, len(kinds))):
        change: dict[str, dict[str, Any]] = {}
        coins = tables["wallet"]["me"]["coins"]
        for key, order in _records(tables, "orders", kind=kind, state="open"):
            product = f"products/{order['product']}"
            stock = change.get(product, tables["products"][order["product"]])["stock"]
            change |= {
                f"orders/{key}": {"state": "cancelled"},
                product: {"stock": stock + order["count"]},
            }
            coins += order["cost"]
        found.append(({"kind": kind}, _goal({**change, "wallet/me": {"coins": coins}})))
    return found


def _tidy(random: Random, tables: Tables) -> list[Case]:
    found = []
    for folder in random.sample(FOLDERS, SIBLINGS):
        inside = {p: f for p, f in tables["files"].items() if p.startswith(f"/{folder}/")}
        ending = random.choice(sorted({path[path.index(".") :] for path in inside}))
        moved = {path: file for path, file in inside.items() if path.endswith(ending)}
        made = [{"path": f"/old{path}", **file} for path, file in moved.items()]
        gone = tuple(f"files/{path}" for path in moved)
        found.append(
            ({"folder": f"/{folder}", "ending": ending}, _goal(None, {"files": made}, gone))
        )
    return found


def _total(random: Random, tables: Tables) -> list[Case]:
    found = []
    for _, note in random.sample(_records(tables, "notes", tag="money"), SIBLINGS):
        total = sum(int(line.split(": ")[1]) for line in note["text"].split("\n"))
        path = f"/reports/{note['title'].split()[0].lower()}-total.txt"
        goal = _goal(None, {"files": [{"path": path, "text": str(total)}]})
        found.append(({"title": note["title"], "path": path}, goal))
    return found


def _forward(random: Random, tables: Tables) -> list[Case]:
    senders = sorted({one["sender"] for one in tables["messages"].values()})
    names = sorted(one["name"] for one in tables["contacts"].values())
    found = []
    for sender in random.sample(senders, SIBLINGS):
        to = random.choice([name for name in names if name != sender])
        mine = _records(tables, "messages", sender=sender)
        change = {f"messages/{key}": {"folder": "archive"} for key, _ in mine}
        goal = _goal(change, {"messages": [_sent(to, one["text"]) for _, one in mine]})
        found.append(({"sender": sender, "to": to}, goal))
    return found


def _number(random: Random, tables: Tables) -> list[Case]:
    found = []
    for key, contact in random.sample(sorted(tables["contacts"].items()), SIBLINGS):
        phone = f"555-{random.randint(1000, 9999)}"
        text = f"Thanks {contact['name'].split()[0]}, noted"
        goal = _goal({f"contacts/{key}": {"phone": phone}},
                     {"messages": [_sent(contact["name"], text)]})  # fmt: skip
        if phone != contact["phone"]:
            found.append(({"name": contact["name"], "phone": phone}, goal))
    return found


def _file_note(random: Random, tables: Tables) -> list[Case]:
    found = []
    for key, note in random.sample(_records(tables, "notes", tag="ideas"), SIBLINGS):
        path = f"/drafts/{note['title'].replace(' ', '-').lower()}.note"
        made = {"path": path, "text": note["text"]}
        found.append(({"title": note["title"], "path": path},
                      _goal(None, {"files": [made]}, (f"notes/{key}",))))  # fmt: skip
    return found


def _spent(random: Random, tables: Tables) -> list[Case]:
    kinds = sorted({order["kind"] for order in tables["orders"].values()})
    return [
        ({"kind": kind}, _goal(answer=str(sum(
            order["cost"] for _, order in _records(tables, "orders", kind=kind)
        ))))
        for kind in random.sample(kinds, min(SIBLINGS, len(kinds)))
    ]  # fmt: skip


def _note_guests(random: Random, tables: Tables) -> list[Case]:
    found = []
    for _, event in random.sample(sorted(tables["events"].items()), SIBLINGS):
        phones = {one["name"]: one["phone"] for one in tables["contacts"].values()}
        text = "\n".join(f"{guest}: {phones[guest]}" for guest in event["guests"])
        note = {"title": f"Guests of {event['title']}", "text": text, "tag": "home"}
        found.append(({"title": event["title"]}, _goal(None, {"notes": [note]})))
    return found


FAMILIES = (
    Family(
        "reschedule",
        "Move the event {title!r} to {day} and tell each of its guests by message: "
        "{title} is now on {day}",
        """
event = calendar_find(title=title)[0]
calendar_move(event=event["id"], day=day)
for guest in event["guests"]:
    messages_send(to=guest, text=title + " is now on " + day)
""",
        _reschedule,
    ),
    Family(
        "invite_group",
        "Invite all contacts of the group {group!r} to the event {title!r} who are not "
        "invited yet.",
        """
event = calendar_find(title=title)[0]
for contact in contacts_list(group=group):
    if contact["name"] not in event["guests"]:
        calendar_invite(event=event["id"], name=contact["name"])
""",
        _invite,
    ),
    Family(
        "buy_cheapest",
        "Buy the cheapest {kind} that is in stock, {count} of it.",
        """
offers = [each for each in shop_search(kind=kind) if each["stock"] > 0]
best = min(offers, key=lambda each: each["price"])
shop_put(product=best["id"], count=count)
shop_buy()
""",
        _buy,
    ),
    Family(
        "buy_list",
        "Buy what is on the note {title!r}, the cheapest of each that is in stock.",
        """
for line in notes_find(title=title)[0]["text"].split("\\n"):
    count, kind = line.split(" x ")
    offers = [each for each in shop_search(kind=kind) if each["stock"] > 0]
    best = min(offers, key=lambda each: each["price"])
    shop_put(product=best["id"], count=int(count))
shop_buy()
""",
        _shopping,
    ),
    Family(
        "cancel_orders",
        "Cancel all open orders of {kind}.",
        """
for order in shop_orders(state="open"):
    if order["kind"] == kind:
        shop_cancel(order=order["id"])
""",
        _cancel,
    ),
    Family(
        "put_away",
        "Move the files in {folder} whose names end with {ending} into the folder of the "
        "same name below /old.",
        """
for path in files_list(folder=folder):
    if path.endswith(ending):
        files_move(path=path, to="/old" + path)
""",
        _tidy,
    ),
    Family(
        "write_total",
        "Add up the amounts on the note {title!r} and write the sum alone into the file {path}.",
        """
total = 0
for line in notes_find(title=title)[0]["text"].split("\\n"):
    total = total + int(line.split(": ")[1])
files_write(path=path, text=str(total))
""",
        _total,
    ),
    Family(
        "forward_all",
        "Forward every message in the inbox from {sender} to {to}, and archive them.",
        """
for message in messages_from(name=sender):
    messages_forward(message=message["id"], to=to)
    messages_archive(message=message["id"])
""",
        _forward,
    ),
    Family(
        "note_number",
        "{name} has a new phone number, {phone}: change the contact, and thank with the "
        "message: Thanks FIRST NAME, noted",
        """
contact = contacts_find(name=name)[0]
contacts_change(contact=contact["id"], field="phone", value=phone)
messages_send(to=name, text="Thanks " + name.split(" ")[0] + ", noted")
""",
        _number,
    ),
    Family(
        "file_note",
        "Save the text of the note {title!r} as the file {path}, then delete the note.",
        """
note = notes_find(title=title)[0]
files_write(path=path, text=note["text"])
notes_delete(note=note["id"])
""",
        _file_note,
    ),
    Family(
        "total_spent",
        "How many coins do all orders of {kind} cost together, whatever their state?",
        """
total = 0
for order in shop_orders():
    if order["kind"] == kind:
        total = total + order["cost"]
return total
""",
        _spent,
    ),
    Family(
        "list_guests",
        "Write a note with the title 'Guests of {title}' and the tag 'home' that has a "
        "line 'NAME: PHONE' for each guest of the event {title!r}.",
        """
lines = []
for guest in calendar_find(title=title)[0]["guests"]:
    lines.append(guest + ": " + contacts_find(name=guest)[0]["phone"])
notes_add(title="Guests of " + title, text="\\n".join(lines), tag="home")
""",
        _note_guests,
    ),
)
"""In the order in which tasks are drawn."""
