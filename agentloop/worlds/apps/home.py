"""Files, notes and the shop; a file's id is its path, prices are whole coins."""

from __future__ import annotations

from agentloop.records import Json
from agentloop.worlds.apps.calls import CALLS, Refused, Tables, add, call, matching, one, shown


def _path(text: str) -> str:
    if not text.startswith("/") or text.endswith("/") or "//" in text:
        raise Refused(f"`{text[:60]}` is no path of a file; write it as /photos/lake.jpg")
    return text


def _free(tables: Tables, path: str) -> str:
    if _path(path) in tables["files"]:
        raise Refused(f"`{path[:60]}` exists already")
    return path


@call
def apps_show(tables: Tables, app: str) -> Json:
    """The calls of an app: files, notes, shop, calendar, messages or contacts."""
    found: list[Json] = [str(each) for each in CALLS.values() if each.app == app]
    if not found:
        apps = ", ".join(sorted({each.app for each in CALLS.values()}))
        raise Refused(f"there is no app `{app[:20]}`; there are {apps}")
    return found


# --- files ----------------------------------------------------------------------------------------


@call
def files_list(tables: Tables, folder: str = "/") -> Json:
    """Paths of the files in a folder and below it."""
    inside = folder.rstrip("/") + "/"
    return [path for path in tables["files"] if path.startswith(inside)]


@call
def files_search(tables: Tables, text: str) -> Json:
    """Paths of the files with this text in them."""
    return [path for path, file in tables["files"].items() if text.lower() in file["text"].lower()]


@call
def files_read(tables: Tables, path: str) -> Json:
    """The text of a file."""
    text: str = one(tables, "files", path)["text"]
    return text


@call
def files_write(tables: Tables, path: str, text: str) -> Json:
    """Write a file, new or instead of what it was."""
    tables["files"][_path(path)] = {"text": text}
    return "written"


@call
def files_append(tables: Tables, path: str, text: str) -> Json:
    """Add a line to the end of a file."""
    file = one(tables, "files", path)
    file["text"] = f"{file['text']}\n{text}" if file["text"] else text
    return "added"


@call
def files_copy(tables: Tables, path: str, to: str) -> Json:
    """Copy a file to a path that is free."""
    tables["files"][_free(tables, to)] = dict(one(tables, "files", path))
    return "copied"


@call
def files_move(tables: Tables, path: str, to: str) -> Json:
    """Move a file to a path that is free."""
    files_copy(tables, path, to)
    del tables["files"][path]
    return "moved"


@call
def files_delete(tables: Tables, path: str) -> Json:
    """Delete a file."""
    one(tables, "files", path)
    del tables["files"][path]
    return "deleted"


# --- notes ----------------------------------------------------------------------------------------


@call
def notes_list(tables: Tables, tag: str = "") -> Json:
    """All notes, or those with a tag."""
    return matching(tables, "notes", lambda note: tag in ("", note["tag"]))


@call
def notes_find(tables: Tables, title: str) -> Json:
    """Notes with this title."""
    return matching(tables, "notes", lambda note: note["title"].lower() == title.lower())


@call
def notes_read(tables: Tables, note: str) -> Json:
    """The text of a note."""
    text: str = one(tables, "notes", note)["text"]
    return text


@call
def notes_add(tables: Tables, title: str, text: str, tag: str = "") -> Json:
    """Write a new note; returns its id."""
    return add(tables, "notes", {"title": title, "text": text, "tag": tag})


@call
def notes_append(tables: Tables, note: str, text: str) -> Json:
    """Add a line to the end of a note."""
    found = one(tables, "notes", note)
    found["text"] = f"{found['text']}\n{text}" if found["text"] else text
    return "added"


@call
def notes_tag(tables: Tables, note: str, tag: str) -> Json:
    """Give a note a tag instead of the one it has."""
    one(tables, "notes", note)["tag"] = tag
    return "tagged"


@call
def notes_delete(tables: Tables, note: str) -> Json:
    """Delete a note."""
    one(tables, "notes", note)
    del tables["notes"][note]
    return "deleted"


# --- shop -----------------------------------------------------------------------------------------


@call
def shop_search(tables: Tables, kind: str) -> Json:
    """Products of a kind, with their price and how many are in stock."""
    return matching(tables, "products", lambda product: product["kind"].lower() == kind.lower())


@call
def shop_product(tables: Tables, product: str) -> Json:
    """One product by its id."""
    return shown(product, one(tables, "products", product))


@call
def shop_balance(tables: Tables) -> Json:
    """The coins that are left."""
    coins: int = tables["wallet"]["me"]["coins"]
    return coins


@call
def shop_cart(tables: Tables) -> Json:
    """What is in the cart."""
    return matching(tables, "cart", lambda _: True)


@call
def shop_put(tables: Tables, product: str, count: int) -> Json:
    """Set how many of a product are in the cart; 0 takes it out."""
    stock = one(tables, "products", product)["stock"]
    if not 0 <= count <= stock:
        raise Refused(f"{product} can be had from 0 to {stock} times")
    tables["cart"].pop(product, None)
    if count:
        tables["cart"][product] = {"count": count}
    return "done"


@call
def shop_buy(tables: Tables) -> Json:
    """Order what is in the cart, one order for each product; returns their ids."""
    cart, products, wallet = tables["cart"], tables["products"], tables["wallet"]["me"]
    if not cart:
        raise Refused("the cart is empty")
    costs = {key: products[key]["price"] * line["count"] for key, line in cart.items()}
    if sum(costs.values()) > wallet["coins"]:
        raise Refused(f"that is {sum(costs.values())} coins; there are {wallet['coins']} left")
    made: list[Json] = []
    for key, line in cart.items():
        products[key]["stock"] -= line["count"]
        wallet["coins"] -= costs[key]
        order = {"product": key, "kind": products[key]["kind"], "count": line["count"]}
        made.append(add(tables, "orders", {**order, "cost": costs[key], "state": "open"}))
    cart.clear()
    return made


@call
def shop_orders(tables: Tables, state: str = "") -> Json:
    """All orders, or those that are open, sent or cancelled."""
    return matching(tables, "orders", lambda order: state in ("", order["state"]))


@call
def shop_cancel(tables: Tables, order: str) -> Json:
    """Cancel an open order: its coins and goods go back."""
    found = one(tables, "orders", order)
    if found["state"] != "open":
        raise Refused(f"{order} is {found['state']}; only an open order can be cancelled")
    found["state"] = "cancelled"
    tables["wallet"]["me"]["coins"] += found["cost"]
    tables["products"][found["product"]]["stock"] += found["count"]
    return "cancelled"
