"""The apps as they are at the start: a seeded household with everything that tasks are about.

In: a random generator. Out: tables in which titles, names and paths tell one record apart from all
others of its kind.
"""

from __future__ import annotations

from random import Random

from agentloop.worlds.apps.calls import Tables

FIRST = ("Anna", "Boris", "Clara", "David", "Elena", "Felix", "Greta", "Hugo", "Ines", "Jonas")
LAST = ("Adler", "Brandt", "Costa", "Dietz", "Engel", "Fuchs", "Graf", "Holm", "Ivers", "Jansen")
OWNERS = ("Kim", "Lou", "Max", "Nora", "Otto", "Pia", "Quin", "Rosa", "Sami", "Tess", "Uwe", "Vera")
FAMILY_NAMES = ("Kern", "Lang", "Moser", "Nagy", "Ott", "Pohl", "Roth", "Sand", "Thoma", "Unger")
GROUPS = ("family", "work", "chess")
TITLES = (
    "Budget review", "Dentist", "Piano lesson", "Book club", "Team lunch", "Garden party",
    "Yoga class", "Parents evening", "Film night", "Choir", "Car service", "Planning",
)  # fmt: skip
KINDS = ("tea", "coffee", "honey", "candles", "soap", "rice")
FOLDERS = ("reports", "photos", "drafts", "recipes")
WORDS = ("lake", "north", "spring", "harvest", "bridge", "letter", "winter", "market")
ENDINGS = (".txt", ".jpg", ".md")
LISTS = ("Party", "Weekend", "Office", "Pantry")
COSTS = ("Rent", "Trips", "Repairs", "Gifts")
TAGS = ("home", "money", "ideas", "shopping")
DAYS = tuple(f"2026-03-{day:02d}" for day in range(2, 28))
THINGS = ("parking", "the keys", "dinner", "the tickets", "the invoice", "the garden")


def setting(random: Random) -> Tables:
    """The tables of all apps."""
    names = [
        f"{a} {b}" for a, b in zip(_some(random, FIRST, 8), _some(random, LAST, 8), strict=True)
    ]
    products = _products(random)
    tables: Tables = {
        "contacts": {
            f"c{at}": {
                "name": name,
                "email": f"{name.split()[0].lower()}@example.org",
                "phone": f"555-{random.randint(1000, 9999)}",
                "group": GROUPS[at % len(GROUPS)],
            }
            for at, name in enumerate(names, start=1)
        },
        "events": {
            f"e{at}": {
                "title": title, "day": random.choice(DAYS),
                "start": f"{random.randint(8, 18):02d}:00",
                "guests": random.sample(names, random.randint(1, 3)),
            }
            for at, title in enumerate(_some(random, TITLES, 7), start=1)
        },
        "messages": _messages(random, names),
        "notes": _notes(random),
        "files": {
            f"/{folder}/{word}{ending}": {"text": f"About {word} and {random.choice(THINGS)}."}
            for folder in FOLDERS
            for word in _some(random, WORDS, 4)
            for ending in [random.choice(ENDINGS)]
        },
        "products": products,
        "cart": {},
        "orders": _orders(random, products),
        "wallet": {"me": {"coins": 1000}},
        "made": {"all": {"count": 0}},
    }  # fmt: skip
    return tables


def owner(random: Random) -> str:
    """Whose apps they are: nobody of the contacts."""
    return f"{random.choice(OWNERS)} {random.choice(FAMILY_NAMES)}"


def _some(random: Random, of: tuple[str, ...], count: int) -> list[str]:
    return random.sample(of, count)


def _messages(random: Random, names: list[str]) -> dict[str, dict[str, object]]:
    senders = [name for name in names[:6] for _ in range(random.randint(1, 3))]
    random.shuffle(senders)
    return {
        f"m{at}": {
            "sender": sender, "to": "me", "folder": "inbox",
            "text": f"Hi, can we talk about {random.choice(THINGS)}? ({at})",
        }
        for at, sender in enumerate(senders, start=1)
    }  # fmt: skip


def _notes(random: Random) -> dict[str, dict[str, object]]:
    lists = [
        (f"{name} list", "shopping", "\n".join(
            f"{random.randint(1, 3)} x {kind}" for kind in sorted(_some(random, KINDS, 2))
        ))
        for name in LISTS
    ]  # fmt: skip
    costs = [
        (f"{name} costs", "money", "\n".join(
            f"{thing}: {random.randint(5, 300)}" for thing in _some(random, WORDS, 3)
        ))
        for name in COSTS
    ]  # fmt: skip
    ideas = [
        (f"Idea {word}", "ideas", f"Something with a {word}.") for word in _some(random, WORDS, 4)
    ]
    return {
        f"n{at}": {"title": title, "text": text, "tag": tag}
        for at, (title, tag, text) in enumerate([*lists, *costs, *ideas], start=1)
    }


def _products(random: Random) -> dict[str, dict[str, object]]:
    offers = [(kind, price) for kind in KINDS for price in random.sample(range(2, 40), 3)]
    random.shuffle(offers)
    return {
        f"p{at}": {"kind": kind, "price": price, "stock": random.choice((0, 8, 9, 12))}
        if any(one == kind for one, _ in offers[:at - 1])
        else {"kind": kind, "price": price, "stock": 10}
        for at, (kind, price) in enumerate(offers, start=1)
    }  # fmt: skip


def _orders(random: Random, products: dict[str, dict[str, object]]) -> dict[str, dict[str, object]]:
    states = ["open"] * 6 + ["sent"] * 3
    random.shuffle(states)
    chosen = random.choices(sorted(products), k=len(states))
    return {
        f"o{at}": {
            "product": key, "kind": products[key]["kind"], "count": 2,
            "cost": 2 * int(str(products[key]["price"])), "state": state,
        }
        for at, (key, state) in enumerate(zip(chosen, states, strict=True), start=1)
    }  # fmt: skip
