# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: it may change without notice.
"""Parts of a report's page: packages and what changed, artifacts, where it all comes from."""

from __future__ import annotations

from ansible_collections.cloudimg.factory.plugins.module_utils._build import STAGES
from ansible_collections.cloudimg.factory.plugins.module_utils._report_data import Facts, newer, table
from ansible_collections.cloudimg.factory.plugins.module_utils._report_html import Markup, Part, moment, size, tag


def section(identifier: str, title: str, *parts: Part, kind: str | None = None) -> Markup:
    """A card with a title."""
    return tag("section", tag("h2", title), parts, id=identifier, class_=kind)


def listing(head: list[str], lines: list[Markup]) -> Markup:
    """A table with a head."""
    return tag("table", tag("thead", tag("tr", [tag("th", name) for name in head])), tag("tbody", lines))


def definitions(pairs: list[tuple[str, Part]]) -> Markup:
    """What is called what; what is empty is left out."""
    return tag("dl", [(tag("dt", name), tag("dd", value)) for name, value in pairs if value])


def changes(facts: Facts) -> Markup:
    title = "What changed"
    found = facts.changes
    if found is None:
        told = (
            "No version of this image was published before."
            if facts.first
            else "The packages of one of both versions are not known."
        )
        return section("changes", title, tag("p", told, class_="soft"))
    ups = [row for row in found.changed if newer(row[1], row[2])]
    downs = [row for row in found.changed if not newer(row[1], row[2])]
    counts = {"added": len(found.added), "removed": len(found.removed), "upgraded": len(ups), "downgraded": len(downs)}
    shown: list[Part] = [tag("span", tag("b", str(count)), name) for name, count in counts.items()]
    if found.size_before and facts.descriptor:
        more = facts.descriptor.artifacts[0].size - found.size_before
        sign = "+" if more > 0 else "−" if more < 0 else "±"
        shown.append(tag("span", tag("b", f"{sign}{size(abs(more))}"), "artifact"))
    since = tag("p", f"It was published {moment(found.published)}.", class_="soft") if found.published else None
    parts: list[Part] = [tag("div", shown, class_="big"), since]
    for name, rows in (("upgraded", ups), ("downgraded", downs)):
        lines = [
            tag("tr", tag("td", row[0]), tag("td", tag("code", row[1])), tag("td", tag("code", row[2]))) for row in rows
        ]
        parts.append(_folded(name, len(rows), listing(["package", "before", "now"], lines)))
    for name, pairs in (("added", found.added), ("removed", found.removed)):
        lines = [tag("tr", tag("td", package), tag("td", tag("code", version))) for package, version in pairs]
        parts.append(_folded(name, len(pairs), listing(["package", "version"], lines)))
    return section("changes", f"{title} since {found.version}", parts, kind="long")


def _folded(name: str, count: int, inner: Markup) -> Markup | None:
    """A list that is open while it is short."""
    if not count:
        return None
    opened = "" if count <= 12 else None
    return tag("details", tag("summary", f"{count} {name}"), inner, open=opened)


def packages(facts: Facts) -> Markup:
    if facts.packages is None:
        return section("packages", "Packages", tag("p", "There is no list of packages.", class_="soft"))
    lines = [
        tag("tr", tag("td", name), tag("td", tag("code", version)), tag("td", arch))
        for (name, arch), version in facts.packages.items()
    ]
    folded = tag("details", tag("summary", "all of them"), listing(["package", "version", "architecture"], lines))
    told = tag("div", tag("span", tag("b", str(len(facts.packages))), "packages"), class_="big")
    return section("packages", "Packages", told, folded, kind="long")


def artifacts(facts: Facts) -> Markup:
    title = "Files"
    if not facts.descriptor:
        return section("artifacts", title, tag("p", "It has not been exported.", class_="soft"))
    shown: list[Part] = []
    for made in facts.descriptor.artifacts:
        about = [made.format, *([made.compression] if made.compression else []), f"a disk of {size(made.virtual_size)}"]
        sums: list[tuple[str, Part]] = [
            (name, tag("span", made.checksums[name], class_="hash")) for name in ("sha256", "sha512", "sha1", "md5")
        ]
        shown.append(tag("p", tag("b", made.path), f" · {size(made.size)} ({made.size} bytes) · {', '.join(about)}"))
        shown.append(definitions(sums))
    return section("artifacts", title, shown)


def provenance(facts: Facts) -> Markup | None:
    build = facts.descriptor
    if not build:
        return None

    def digest(value: str | None) -> Markup | None:
        return tag("span", value, class_="hash") if value else None

    origin = build.source or {}
    file = origin.get("source") or ""
    known = bool(origin.get("sha256")) and file.startswith(origin["sha256"])
    names = [origin.get("family"), origin.get("image"), origin.get("version"), None if known else file]
    made = build.provenance
    stages = sorted(made.stages, key=lambda name: STAGES.index(name) if name in STAGES else len(STAGES))
    pairs: list[tuple[str, Part]] = [
        ("identifier", digest(build.identifier)),
        ("made from", " ".join(name for name in names if name)),
        ("its digest", digest(origin.get("sha256") or origin.get("digest"))),
        ("definition", digest(made.definition_digest)),
        *((f"stage {name}", digest(made.stages[name])) for name in stages),
        ("endorser", ", ".join((build.endorser or {}).values())),
        ("tools", f"cloudimg.factory {made.collection}, QEMU {made.qemu}"),
        ("assessed with", _assessed_with(facts)),
    ]
    return section("provenance", "Where it comes from", definitions(pairs))


def _assessed_with(facts: Facts) -> str:
    found = facts.assessment
    told = [f"{name}{found[key]}" for name, key in (("QEMU ", "qemu"), ("", "accelerator")) if found.get(key)]
    options = table(found.get("options"))
    told += [f"{options[key]} {unit}" for key, unit in (("cpus", "processors"), ("memory", "MiB")) if options.get(key)]
    if found.get("finished"):
        told.append(f"ended {moment(found['finished'])}")
    return ", ".join(told)
