"""Calendar, messages and contacts: people are named by their full name everywhere."""

from __future__ import annotations

import re

from agentloop.records import Json
from agentloop.worlds.apps.calls import Refused, Tables, add, call, matching, one, shown

_DAY, _TIME = re.compile(r"\d{4}-\d\d-\d\d"), re.compile(r"\d\d:\d\d")
_FIELDS = ("name", "email", "phone", "group")


def _day(text: str) -> str:
    if not _DAY.fullmatch(text):
        raise Refused(f"`{text[:20]}` is no day; write it as 2026-03-31")
    return text


def _time(text: str) -> str:
    if not _TIME.fullmatch(text):
        raise Refused(f"`{text[:20]}` is no time; write it as 09:30")
    return text


def _known(tables: Tables, name: str) -> str:
    if all(record["name"] != name for record in tables["contacts"].values()):
        raise Refused(f"`{name[:40]}` is not among the contacts")
    return name


# --- calendar -------------------------------------------------------------------------------------


@call
def calendar_day(tables: Tables, day: str) -> Json:
    """Events of a day."""
    _day(day)
    return matching(tables, "events", lambda event: event["day"] == day)


@call
def calendar_find(tables: Tables, title: str) -> Json:
    """Events with this title."""
    return matching(tables, "events", lambda event: event["title"].lower() == title.lower())


@call
def calendar_get(tables: Tables, event: str) -> Json:
    """One event by its id."""
    return shown(event, one(tables, "events", event))


@call
def calendar_add(tables: Tables, title: str, day: str, start: str = "09:00") -> Json:
    """Add an event without guests; returns its id."""
    record = {"title": title, "day": _day(day), "start": _time(start), "guests": []}
    return add(tables, "events", record)


@call
def calendar_move(tables: Tables, event: str, day: str, start: str = "") -> Json:
    """Move an event to another day, and to another time if one is given."""
    found = one(tables, "events", event)
    moved = {"day": _day(day), "start": _time(start) if start else found["start"]}
    found.update(moved)
    return "moved"


@call
def calendar_invite(tables: Tables, event: str, name: str) -> Json:
    """Add a contact to the guests of an event."""
    guests = one(tables, "events", event)["guests"]
    if _known(tables, name) in guests:
        raise Refused(f"{name} is invited already")
    guests.append(name)
    return "invited"


@call
def calendar_uninvite(tables: Tables, event: str, name: str) -> Json:
    """Take a guest off an event."""
    guests = one(tables, "events", event)["guests"]
    if name not in guests:
        raise Refused(f"`{name[:40]}` is not a guest of {event}")
    guests.remove(name)
    return "taken off"


@call
def calendar_cancel(tables: Tables, event: str) -> Json:
    """Delete an event; its guests are not told."""
    one(tables, "events", event)
    del tables["events"][event]
    return "cancelled"


# --- messages -------------------------------------------------------------------------------------


@call
def messages_list(tables: Tables, folder: str = "inbox") -> Json:
    """Messages of a folder: inbox, archive or sent."""
    if folder not in ("inbox", "archive", "sent"):
        raise Refused(f"there is no folder `{folder[:20]}`; there are inbox, archive and sent")
    return matching(tables, "messages", lambda message: message["folder"] == folder)


@call
def messages_from(tables: Tables, name: str) -> Json:
    """Messages in the inbox that this person sent."""
    return matching(
        tables, "messages", lambda each: each["folder"] == "inbox" and each["sender"] == name
    )


@call
def messages_search(tables: Tables, text: str) -> Json:
    """Messages of all folders with this text in them."""
    return matching(tables, "messages", lambda message: text.lower() in message["text"].lower())


@call
def messages_read(tables: Tables, message: str) -> Json:
    """One message by its id."""
    return shown(message, one(tables, "messages", message))


@call
def messages_send(tables: Tables, to: str, text: str) -> Json:
    """Send a message to a contact; returns its id."""
    record = {"sender": "me", "to": _known(tables, to), "text": text, "folder": "sent"}
    return add(tables, "messages", record)


@call
def messages_reply(tables: Tables, message: str, text: str) -> Json:
    """Send a message to the sender of another; returns its id."""
    return messages_send(tables, one(tables, "messages", message)["sender"], text)


@call
def messages_forward(tables: Tables, message: str, to: str) -> Json:
    """Send the text of a message to another contact; returns the id of what was sent."""
    return messages_send(tables, to, one(tables, "messages", message)["text"])


@call
def messages_archive(tables: Tables, message: str) -> Json:
    """Move a message from the inbox to the archive."""
    found = one(tables, "messages", message)
    if found["folder"] != "inbox":
        raise Refused(f"{message} is not in the inbox")
    found["folder"] = "archive"
    return "archived"


@call
def messages_delete(tables: Tables, message: str) -> Json:
    """Delete a message for good."""
    one(tables, "messages", message)
    del tables["messages"][message]
    return "deleted"


# --- contacts -------------------------------------------------------------------------------------


@call
def contacts_list(tables: Tables, group: str = "") -> Json:
    """All contacts, or those of a group."""
    return matching(tables, "contacts", lambda each: group in ("", each["group"]))


@call
def contacts_find(tables: Tables, name: str) -> Json:
    """Contacts with this name or first name."""
    wanted = name.lower()
    return matching(
        tables, "contacts",
        lambda each: wanted in (each["name"].lower(), each["name"].lower().split()[0]),
    )  # fmt: skip


@call
def contacts_add(tables: Tables, name: str, email: str = "", phone: str = "") -> Json:
    """Add a contact; returns its id."""
    if not name.strip():
        raise Refused("a contact needs a name")
    return add(
        tables, "contacts", {"name": name, "email": email, "phone": phone, "group": "others"}
    )


@call
def contacts_change(tables: Tables, contact: str, field: str, value: str) -> Json:
    """Set the name, email, phone or group of a contact."""
    if field not in _FIELDS:
        raise Refused(f"a contact has no `{field[:20]}`; it has {', '.join(_FIELDS)}")
    if field == "name" and not value.strip():
        raise Refused("a contact needs a name")
    one(tables, "contacts", contact)[field] = value
    return "changed"


@call
def contacts_delete(tables: Tables, contact: str) -> Json:
    """Delete a contact."""
    one(tables, "contacts", contact)
    del tables["contacts"][contact]
    return "deleted"
