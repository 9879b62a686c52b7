# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""An OpenNebula front-end for tests: XML-RPC over real HTTP, with objects, rights, quotas, states and transfers that take time.

Texts, codes and states are those that a front-end 7.5.80 answered; what it was not asked follows the documentation of the
XML-RPC interface. Images are really copied, from a path or a URL, below a directory of the test's. Nothing of the collection is
used here.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import http.server
import re
import socket
import struct
import threading
import time
import typing as t
import urllib.error
import urllib.request
import xmlrpc.client
from pathlib import Path

from ansible_collections.cloudimg.factory.tests.tools import opennebula_objects as objects
from ansible_collections.cloudimg.factory.tests.tools.opennebula_objects import (
    ACTION,
    ALLOCATE,
    AUTHENTICATION,
    AUTHORIZATION,
    DELETE,
    DISABLED,
    ERROR,
    INTERNAL,
    LOCKED,
    LOCKED_OBJECT,
    NO_EXISTS,
    READY,
    STATES,
    TYPES,
    USED,
    USED_PERS,
    App,
    Datastore,
    Image,
    Market,
    Pairs,
    Refused,
    Rule,
    Thing,
    User,
    VmTemplate,
    value_of,
)

PASSWORD = "opennebula-secret-4711"
_BLOCK = 1 << 16


class OpenNebulaServer:
    """The front-end, with user oneadmin, the image datastores C(default) (1) and C(fast) (100), and a marketplace C(private).

    :ivar asked: each call that came whole: its method, without C(one.), and its arguments without the session.
    :ivar delay: seconds that a transfer takes beside the copying; ``rate``: bytes a second, None: as fast as it goes.
    :ivar new_mode: the rights of a new image, by the umask of users.
    :ivar full: whether the disk below the datastores is full.
    :ivar hooks: called before a method of that name is done, with the server and the arguments; what it raises is the answer.
    :ivar faults: ``{method: [fault, …]}``, taken off one by one: an HTTP status as a string, by C(-untold) after it without
        Retry-After, C(html), C(lost) (done, but not answered), C(reset) (not done).
    """

    def __init__(self, root: Path, *, safe: str | None = None) -> None:
        self.root = root
        self.delay = 0.0
        self.rate: float | None = None
        self.full = False
        self.new_mode = 0o600
        self.asked: list[tuple[str, tuple[t.Any, ...]]] = []
        self.hooks: dict[str, t.Callable[..., None]] = {}
        self.faults: dict[str, list[str]] = {}
        self.users = {0: User(0, "oneadmin", PASSWORD, 0)}
        self.groups = {0: "oneadmin", 1: "users"}
        self.images: dict[int, Image] = {}
        self.templates: dict[int, VmTemplate] = {}
        self.datastores: dict[int, Datastore] = {}
        self.markets = {100: Market(100, 0, 0, "private", 0o644)}
        self.apps: dict[int, App] = {}
        self.vms: dict[int, tuple[int, str, list[int]]] = {}
        everything = sum(objects.KINDS[kind] for kind in ("VM", "IMAGE", "TEMPLATE"))
        self.rules = {
            0: Rule(0, objects.GROUP | 1, everything | objects.ALL, 8),
            1: Rule(1, objects.GROUP | 1, objects.KINDS["DATASTORE"] | objects.ALL, 1),
        }
        for number, name, kind in ((0, "system", 1), (1, "default", 0), (2, "files", 2), (100, "fast", 0)):
            base = root / "datastores" / str(number)
            base.mkdir(parents=True, exist_ok=True)
            pairs: Pairs = [
                ("DS_MAD", "fs"),
                ("RESTRICTED_DIRS", "/"),
                ("SAFE_DIRS", safe or str(root / "safe")),
                ("TYPE", ("IMAGE_DS", "SYSTEM_DS", "FILE_DS")[kind]),
            ]
            self.datastores[number] = Datastore(
                number, 0, 0, name, 0o640, pairs, type=kind, base=f"{root}/datastores/{number}"
            )
        (root / "safe").mkdir(parents=True, exist_ok=True)
        self._next: dict[str, int] = {"acl": 2, "user": 2}
        self._lock = threading.RLock()
        self._generation = 0
        self._server: http.server.ThreadingHTTPServer | None = None
        self.port = 0
        self.start()

    def __enter__(self) -> OpenNebulaServer:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.stop()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/RPC2"

    def start(self) -> None:
        """Listen, after :meth:`stop` on the same port."""
        owner = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                owner._answer(self)

            def log_message(self, *_args: object) -> None:
                return

        class Server(http.server.ThreadingHTTPServer):
            daemon_threads = True
            allow_reuse_address = True

            def handle_error(self, *_args: object) -> None:
                return

        self._server = Server(("127.0.0.1", self.port), Handler)
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def lose_transfers(self) -> None:
        """As when oned dies with its drivers: what is copied now is never heard of again, and stays LOCKED."""
        self._generation += 1

    def stop(self) -> None:
        """End."""
        if self._server:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def add_user(self, name: str, password: str) -> User:
        """A user of the group C(users)."""
        with self._lock:
            user = User(self._number("user"), name, password)
            self.users[user.id] = user
            return user

    def count(self, method: str) -> int:
        """How often a method was called."""
        return sum(name == method for name, _arguments in self.asked)

    def writes(self) -> list[str]:
        """The methods that were called to change something."""
        return [name for name, _arguments in self.asked if not name.endswith((".info", "version"))]

    def settle(self, timeout: float = 30.0) -> None:
        """Wait until no transfer is under way."""
        end = time.monotonic() + timeout
        while any(image.state in (LOCKED, DELETE) for image in list(self.images.values())) and time.monotonic() < end:
            time.sleep(0.02)

    def state(self) -> dict[str, t.Any]:
        """What there is, without numbers and times, for comparing two runs."""
        names = {image.id: _timeless(image.name) for image in self.images.values()}

        def plain(pairs: Pairs) -> list[t.Any]:
            rows = []
            for name, value in pairs:
                if isinstance(value, dict):
                    value = {key: names.get(int(v), v) if key == "IMAGE_ID" else v for key, v in value.items()}
                if name not in ("CLOUDIMG_EXPIRED", "ERROR"):
                    rows.append((name, value))
            return sorted(rows, key=str)

        return {
            "images": sorted(
                (_timeless(i.name), STATES[i.state], i.mode, i.uid, i.gid, i.datastore, str(plain(i.pairs)))
                for i in self.images.values()
            ),
            "templates": sorted((x.name, x.mode, x.uid, x.gid, str(plain(x.pairs))) for x in self.templates.values()),
        }

    # HTTP and XML-RPC

    def _answer(self, request: http.server.BaseHTTPRequestHandler) -> None:
        body = request.rfile.read(int(request.headers.get("Content-Length") or 0))
        try:
            params, method = xmlrpc.client.loads(body)
        except Exception:
            request.send_error(400)
            return
        name = str(method or "").removeprefix("one.")
        fault = self.faults.get(name) or []
        kind = fault.pop(0) if fault else ""
        if kind == "reset":
            _reset(request)
            return
        status, _dash, untold = kind.partition("-")
        if status.isdigit():
            request.send_response(int(status))
            request.send_header("Content-Length", "0")
            if status in ("429", "503") and not untold:
                request.send_header("Retry-After", "1")
            request.end_headers()
            return
        if kind == "html":
            page = b"<!DOCTYPE html><html><head><title>Please log in</title></head><body></body></html>"
            self._send(request, page, "text/html")
            return
        try:
            reply = self._call(name, params)
            data = xmlrpc.client.dumps((reply,), methodresponse=True, allow_none=True)
        except xmlrpc.client.Fault as exc:
            data = xmlrpc.client.dumps(exc, methodresponse=True)
        if kind == "lost":
            _reset(request)
            return
        self._send(request, data.encode("utf-8"), "text/xml; charset=utf-8")

    @staticmethod
    def _send(request: http.server.BaseHTTPRequestHandler, data: bytes, kind: str) -> None:
        request.send_response(200)
        request.send_header("Content-Type", kind)
        request.send_header("Content-Length", str(len(data)))
        request.end_headers()
        with contextlib.suppress(OSError):
            request.wfile.write(data)

    def _call(self, name: str, params: t.Sequence[t.Any]) -> list[t.Any]:
        work = getattr(self, "do_" + name.replace(".", "_"), None)
        if work is None:
            raise xmlrpc.client.Fault(-506, f"Method 'one.{name}' not defined")
        try:
            self.asked.append((name, tuple(params[1:])))
            hook = self.hooks.get(name)
            with self._lock:
                user = self._user(str(params[0] if params else ""))
                if hook:
                    hook(self, *params[1:])
                found = work(user, *params[1:])
            return [True, found, 0]
        except Refused as exc:
            return [False, f"[one.{name}] {exc}", exc.code, exc.about, -1]
        except (TypeError, ValueError) as exc:
            raise xmlrpc.client.Fault(-501, f"Not enough parameters or of another type: {exc}") from exc

    def _user(self, session: str) -> User:
        name, _colon, password = session.partition(":")
        for user in self.users.values():
            if (user.name, user.password) == (name, password):
                return user
        raise Refused(AUTHENTICATION, "User couldn't be authenticated, aborting call.")

    # Rights

    def _must(self, user: User, right: str, kind: str, thing: Thing | None = None, about: int = -1) -> None:
        """Raise Refused where a user may not do something to an object, or create one."""
        gids = (user.gid,)
        if user.gid == 0:
            return
        if thing is not None and right != "CREATE" and thing.may(user.id, gids, right):
            return
        number = thing.id if thing is not None else about
        which = (kind, number, thing.gid if thing is not None else -1)
        if any(rule.grants(user.id, gids, which, right) for rule in self.rules.values()):
            return
        place = f" [{number}]" if number >= 0 else ""
        raise Refused(AUTHORIZATION, f"User [{user.id}] : Not authorized to perform {right} {kind}{place}.", number)

    def _get(self, pool: t.Mapping[int, t.Any], number: int, called: str) -> t.Any:
        found = pool.get(number)
        if found is None:
            raise Refused(NO_EXISTS, f"Error getting {called} [{number}].", number)
        return found

    def _change(
        self, user: User, pool: t.Mapping[int, t.Any], number: int, called: str, right: str = "MANAGE"
    ) -> t.Any:
        thing = self._get(pool, number, called)
        self._must(user, right, thing.kind, thing)
        if thing.lock and user.id != 0:
            raise Refused(LOCKED_OBJECT, f"User [{user.id}] : Object is locked by user [{thing.lock[1]}].", number)
        return thing

    def _number(self, kind: str) -> int:
        number = self._next.get(kind, 0)
        self._next[kind] = number + 1
        return number

    def _free_name(self, pool: t.Mapping[int, Thing], name: str, uid: int, but: int = -1) -> None:
        if len(name) > 128:
            raise Refused(ALLOCATE, "Invalid NAME; max length is 128 chars.")
        taken = next((x for x in pool.values() if x.name == name and x.uid == uid and x.id != but), None)
        if taken:
            raise Refused(ALLOCATE, f"NAME is already taken by {taken.kind} {taken.id}.", taken.id)

    def _xml(self, thing: Thing) -> str:
        names = {user.id: user.name for user in self.users.values()}
        return f"<{thing.tag}>{objects.xml_of([*thing.head(names, self.groups), *thing.body()])}</{thing.tag}>"

    def _pool(self, user: User, pool: t.Mapping[int, t.Any], tag: str, given: t.Sequence[int]) -> str:
        which, start, end = (*given, *(-2, -1, -1)[len(given) :])[:3]
        found = []
        for thing in pool.values():
            if which in (-3,) and thing.uid != user.id:
                continue
            if which == -4 and thing.gid != user.gid:
                continue
            if which == -1 and thing.uid != user.id and thing.gid != user.gid:
                continue
            if which >= 0 and thing.uid != which:
                continue
            if start >= 0 and (thing.id < start or (end >= 0 and thing.id > end)):
                continue
            with contextlib.suppress(Refused):
                self._must(user, "USE", thing.kind, thing)
                found.append(self._xml(thing))
        return f"<{tag}_POOL>{''.join(found)}</{tag}_POOL>"

    # Users, groups, rules

    def do_system_version(self, user: User) -> str:
        return "7.5.80"

    def _user_xml(self, user: User) -> str:
        quotas = []
        for number, (images, size) in user.quotas.items():
            own = [i for i in self.images.values() if i.uid == user.id and i.datastore == number]
            rows = {"ID": number, "IMAGES": images, "IMAGES_USED": len(own), "SIZE": size}
            quotas.append(("DATASTORE", {**rows, "SIZE_USED": sum(i.size for i in own)}))
        rows = [
            ("ID", user.id),
            ("GID", user.gid),
            ("GROUPS", {"ID": user.gid}),
            ("GNAME", self.groups[user.gid]),
            ("NAME", user.name),
            ("PASSWORD", "0" * 64),
            ("AUTH_DRIVER", "core"),
            ("ENABLED", 1),
            ("TEMPLATE", list(user.pairs)),
            ("DATASTORE_QUOTA", quotas),
            *((name, "") for name in ("NETWORK_QUOTA", "VM_QUOTA", "IMAGE_QUOTA", "DEFAULT_USER_QUOTAS")),
        ]
        return f"<USER>{objects.xml_of(rows)}</USER>"

    def do_user_info(self, user: User, number: int = -1, decrypt: bool = False) -> str:
        found = user if number == -1 else self._get(self.users, number, "user")
        if found is not user:
            self._must(user, "USE", "USER", about=number)
        return self._user_xml(found)

    def do_userpool_info(self, user: User) -> str:
        self._must(user, "USE", "USER")
        return f"<USER_POOL>{''.join(map(self._user_xml, self.users.values()))}</USER_POOL>"

    def do_user_allocate(
        self, user: User, name: str, password: str, driver: str = "core", groups: t.Sequence[int] = ()
    ) -> int:
        self._must(user, "CREATE", "USER")
        return self.add_user(name, password).id

    def do_user_quota(self, user: User, number: int, template: str) -> int:
        self._must(user, "ADMIN", "USER", about=number)
        for name, value in objects.read_template(template):
            if name == "DATASTORE" and isinstance(value, dict):
                self.users[number].quotas[int(value["ID"])] = (
                    int(value.get("IMAGES", -1)),
                    int(value.get("SIZE", -1)),
                )
        return number

    def do_grouppool_info(self, user: User) -> str:
        rows = [
            ("GROUP", {"ID": number, "NAME": name, "TEMPLATE": "", "USERS": "", "ADMINS": ""})
            for number, name in self.groups.items()
        ]
        return f"<GROUP_POOL>{objects.xml_of(rows)}</GROUP_POOL>"

    def do_group_allocate(self, user: User, name: str) -> int:
        self._must(user, "CREATE", "GROUP")
        number = max(99, *self.groups) + 1
        self.groups[number] = name
        return number

    def do_acl_info(self, user: User) -> str:
        rows = []
        for rule in self.rules.values():
            words = {"USER": rule.user, "RESOURCE": rule.resource, "RIGHTS": rule.rights}
            shown = {name: f"{value:x}" for name, value in words.items()}
            rows.append(("ACL", {"ID": rule.id, **shown, "STRING": ""}))
        return f"<ACL_POOL>{objects.xml_of(rows)}</ACL_POOL>"

    def do_acl_addrule(self, user: User, who: str, resource: str, rights: str) -> int:
        self._must(user, "ADMIN", "USER", about=0)
        number = self._number("acl")
        self.rules[number] = Rule(number, int(who, 16), int(resource, 16), int(rights, 16))
        return number

    def do_acl_delrule(self, user: User, number: int) -> int:
        self._must(user, "ADMIN", "USER", about=0)
        self._get(self.rules, number, "ACL")
        del self.rules[number]
        return number

    # Datastores

    def do_datastorepool_info(self, user: User) -> str:
        return self._pool(user, self.datastores, "DATASTORE", ())

    def do_datastore_info(self, user: User, number: int, decrypt: bool = False) -> str:
        store = self._get(self.datastores, number, "datastore")
        self._must(user, "USE", "DATASTORE", store)
        return self._xml(store)

    # Images

    def do_imagepool_info(self, user: User, *given: int) -> str:
        return self._pool(user, self.images, "IMAGE", given)

    def do_image_info(self, user: User, number: int, decrypt: bool = False) -> str:
        image = self._get(self.images, number, "image")
        self._must(user, "USE", "IMAGE", image)
        return self._xml(image)

    def do_image_allocate(self, user: User, template: str, datastore: int, no_check_capacity: bool = False) -> int:
        pairs = objects.read_template(template)
        store = self._get(self.datastores, datastore, "datastore")
        begin = "Error allocating a new image. "
        if store.type == 1:
            raise Refused(ALLOCATE, f"{begin}New images can only be allocated in a files or image datastore.")
        kind = value_of(pairs, "TYPE").upper() or "OS"
        path = value_of(pairs, "PATH")
        if kind != "DATABLOCK" and not path and not value_of(pairs, "SOURCE"):
            raise Refused(INTERNAL, "Cannot parse image SIZE: no PATH or SOURCE")
        size = int(value_of(pairs, "SIZE") or 0) if kind == "DATABLOCK" else self._size(path)
        self._must(user, "CREATE", "IMAGE")
        self._must(user, "USE", "DATASTORE", store)
        if size > store.free and not no_check_capacity:
            raise Refused(ACTION, "Not enough space in datastore")
        self._quota(user, datastore, size)
        name = value_of(pairs, "NAME")
        if not name:
            raise Refused(ALLOCATE, f"{begin}Invalid NAME, it cannot be empty")
        try:
            self._free_name(self.images, name, user.id)
        except Refused as exc:
            raise Refused(ALLOCATE, f"{begin}{exc}", exc.about) from exc
        own = ("NAME", "TYPE", "PATH", "PERSISTENT", "SIZE", "FORMAT", "DRIVER", "SOURCE", "MD5", "SHA1", "DATASTORE")
        image = Image(
            self._number("image"),
            user.id,
            user.gid,
            name,
            self.new_mode,
            [pair for pair in pairs if pair[0] not in own],
            type=TYPES.index(kind),
            persistent=value_of(pairs, "PERSISTENT").upper() == "YES",
            path=path,
            format=value_of(pairs, "FORMAT") or value_of(pairs, "DRIVER") or "raw",
            size=size,
            datastore=datastore,
            datastore_name=store.name,
        )
        self.images[image.id] = image
        store.images.add(image.id)
        sums = {"md5": value_of(pairs, "MD5"), "sha1": value_of(pairs, "SHA1")}
        threading.Thread(target=self._transfer, args=(image, store, sums, self._generation), daemon=True).start()
        return image.id

    def _size(self, path: str) -> int:
        """As the datastore's C(stat) finds it, in MiB: the virtual size of what is a qcow2, else the length."""
        try:
            if path.startswith(("http://", "https://")):
                with urllib.request.urlopen(urllib.request.Request(path, method="HEAD"), timeout=10) as reply:
                    length = int(reply.headers["Content-Length"])
                ranged = urllib.request.Request(path, headers={"Range": "bytes=0-1023"})
                with urllib.request.urlopen(ranged, timeout=10) as reply:
                    head = reply.read(1024)
            else:
                length = Path(path).stat().st_size
                with Path(path).open("rb") as stream:
                    head = stream.read(1024)
        except urllib.error.URLError as exc:
            raise Refused(INTERNAL, f"Cannot parse image SIZE: Failed to get image head: {exc}") from exc
        except OSError as exc:
            raise Refused(INTERNAL, f"Cannot parse image SIZE: cannot access '{path}' ({exc.strerror})") from exc
        size = struct.unpack(">Q", head[24:32])[0] if head[:4] == b"QFI\xfb" else length
        return int(size) + (1 << 20) - 1 >> 20

    def _quota(self, user: User, datastore: int, size: int) -> None:
        limit, most = user.quotas.get(datastore, (-1, -1))
        own = [image for image in self.images.values() if image.uid == user.id and image.datastore == datastore]
        for name, wish, bound in (
            ("IMAGES", len(own) + 1, limit),
            ("SIZE", sum(image.size for image in own) + size, most),
        ):
            if bound >= 0 and wish > bound:
                raise Refused(
                    AUTHORIZATION,
                    f"User [{user.id}] : user [{user.id}] limit of {bound} reached for {name} quota in DATASTORE "
                    f"with ID: {datastore}.",
                )

    def _transfer(self, image: Image, store: Datastore, sums: dict[str, str], generation: int) -> None:
        target = Path(store.base) / hashlib.md5(str(image.id).encode()).hexdigest()
        problem = ""
        try:
            if image.type == 2:
                with target.open("wb") as stream:
                    stream.truncate(image.size << 20)
            else:
                problem = self._restricted(image.path, store) or self._copy(image.path, target, sums)
        except OSError as exc:
            problem = f"Error copying {image.path}: {exc}"
        time.sleep(self.delay)
        with self._lock:
            if generation != self._generation or image.id not in self.images:
                target.unlink(missing_ok=True)
                return
            if problem:
                target.unlink(missing_ok=True)
                said = f"{time.strftime('%a %b %d %H:%M:%S %Y')} : Error copying image in the datastore: {problem}"
                image.pairs = objects.merge(image.pairs, [("ERROR", said)])
                image.state = ERROR
            else:
                image.source = str(target)
                store.free -= image.size
                image.state = READY

    def _restricted(self, path: str, store: Datastore) -> str:
        if path.startswith(("http://", "https://")):
            return ""
        real = str(Path(path).resolve())

        def below(names: str) -> bool:
            return any(real == each or real.startswith(each.rstrip("/") + "/") for each in names.split())

        if below(value_of(store.pairs, "SAFE_DIRS")) or not below(value_of(store.pairs, "RESTRICTED_DIRS")):
            return ""
        return f"Not allowed to copy image from {path}, check RESTRICTED_DIRS in your datastore"

    def _copy(self, path: str, target: Path, sums: dict[str, str]) -> str:
        digests = {name: hashlib.new(name) for name, value in sums.items() if value}
        source: t.Any = urllib.request.urlopen(path if path.startswith("http") else Path(path).as_uri(), timeout=10)
        expected = int(source.headers["Content-Length"]) if path.startswith("http") else None
        done = 0
        with source, target.open("wb") as stream:
            while block := source.read(_BLOCK):
                if self.full:
                    raise OSError(errno.ENOSPC, "No space left on device")
                stream.write(block)
                done += len(block)
                for digest in digests.values():
                    digest.update(block)
                if self.rate:
                    time.sleep(len(block) / self.rate)
        if expected is not None and done != expected:
            return f"Error downloading {path}"
        wrong = next((name for name, digest in digests.items() if digest.hexdigest() != sums[name]), "")
        return f"{wrong.upper()} sum does not match for {path}" if wrong else ""

    def do_image_delete(self, user: User, number: int, force: bool = False) -> int:
        image = self._change(user, self.images, number, "image")
        if image.vms:
            raise Refused(ACTION, f"Cannot delete image. There are {len(image.vms)} VMs using it.", number)
        if image.clones:
            raise Refused(ACTION, "Cannot delete image. There are images cloned from it.", number)
        self.datastores[image.datastore].images.discard(number)
        if image.source:
            Path(image.source).unlink(missing_ok=True)
            self.datastores[image.datastore].free += image.size
        del self.images[number]
        return number

    def do_image_update(self, user: User, number: int, template: str, append: int = 0) -> int:
        return self._update(self._change(user, self.images, number, "image"), template, append)

    def _update(self, thing: t.Any, template: str, append: int) -> int:
        pairs = objects.read_template(template)
        thing.pairs = objects.merge(thing.pairs, pairs) if append else pairs
        return int(thing.id)

    def do_image_enable(self, user: User, number: int, enable: bool) -> int:
        image = self._change(user, self.images, number, "image")
        allowed = (DISABLED, ERROR, READY) if enable else (READY, ERROR, DISABLED)
        if image.state not in allowed:
            word = "enabled" if enable else "disabled"
            raise Refused(INTERNAL, f"Image cannot be {word} in state {STATES[image.state]}.", number)
        image.state = READY if enable else DISABLED
        return number

    def do_image_persistent(self, user: User, number: int, persistent: bool) -> int:
        image = self._change(user, self.images, number, "image")
        if image.vms or image.state == LOCKED:
            raise Refused(INTERNAL, f"Image cannot be made persistent in state {STATES[image.state]}.", number)
        image.persistent = persistent
        return number

    def do_image_rename(self, user: User, number: int, name: str) -> int:
        image = self._change(user, self.images, number, "image")
        return self._rename(self.images, image, name)

    def _rename(self, pool: t.Mapping[int, t.Any], thing: t.Any, name: str) -> int:
        if not name:
            raise Refused(ALLOCATE, "Invalid NAME, it cannot be empty")
        self._free_name(pool, name, thing.uid, thing.id)
        thing.name = name
        return int(thing.id)

    def do_image_chmod(self, user: User, number: int, *bits: int) -> int:
        return self._chmod(user, self.images, number, "image", bits)

    def _chmod(self, user: User, pool: t.Mapping[int, t.Any], number: int, called: str, bits: t.Sequence[int]) -> int:
        thing = self._get(pool, number, called)
        mode = thing.mode
        admin = False
        for index, bit in enumerate(bits[:9]):
            place = 1 << (8 - index)
            if bit >= 0 and bool(mode & place) != bool(bit):
                mode ^= place
                admin = admin or index % 3 == 2
        thing = self._change(user, pool, number, called, "ADMIN" if admin else "MANAGE")
        thing.mode = mode
        return number

    def do_image_chown(self, user: User, number: int, uid: int, gid: int) -> int:
        return self._chown(user, self.images, number, "image", uid, gid)

    def _chown(self, user: User, pool: t.Mapping[int, t.Any], number: int, called: str, uid: int, gid: int) -> int:
        thing = self._change(user, pool, number, called)
        if uid != -1:
            self._get(self.users, uid, "user")
            if uid != thing.uid:
                self._must(user, "MANAGE", "USER", about=uid)
                self._free_name(pool, thing.name, uid, thing.id)
        if gid != -1:
            self._get(self.groups, gid, "group")
            if gid not in (thing.gid, user.gid):
                self._must(user, "USE", "GROUP", about=gid)
        thing.uid = thing.uid if uid == -1 else uid
        thing.gid = thing.gid if gid == -1 else gid
        return number

    def do_image_lock(self, user: User, number: int, level: int, test: bool = False) -> int:
        self._change(user, self.images, number, "image").lock = (level, user.id)
        return number

    def do_image_unlock(self, user: User, number: int) -> int:
        self._get(self.images, number, "image").lock = None
        return number

    # VM templates

    def do_templatepool_info(self, user: User, *given: int) -> str:
        return self._pool(user, self.templates, "VMTEMPLATE", given)

    def do_template_info(self, user: User, number: int, extended: bool = False, decrypt: bool = False) -> str:
        found = self._get(self.templates, number, "template")
        self._must(user, "USE", "TEMPLATE", found)
        return self._xml(found)

    def do_template_allocate(self, user: User, template: str) -> int:
        pairs = objects.read_template(template)
        self._must(user, "CREATE", "TEMPLATE")
        name = value_of(pairs, "NAME")
        try:
            if not name:
                raise Refused(ALLOCATE, "Invalid NAME, it cannot be empty")
            self._free_name(self.templates, name, user.id)
        except Refused as exc:
            raise Refused(INTERNAL, str(exc), exc.about) from exc
        found = VmTemplate(
            self._number("template"), user.id, user.gid, name, 0o600, [pair for pair in pairs if pair[0] != "NAME"]
        )
        self.templates[found.id] = found
        return found.id

    def do_template_update(self, user: User, number: int, template: str, append: int = 0) -> int:
        return self._update(self._change(user, self.templates, number, "template"), template, append)

    def do_template_rename(self, user: User, number: int, name: str) -> int:
        return self._rename(self.templates, self._change(user, self.templates, number, "template"), name)

    def do_template_chmod(self, user: User, number: int, *bits: int) -> int:
        return self._chmod(user, self.templates, number, "template", bits)

    def do_template_chown(self, user: User, number: int, uid: int, gid: int) -> int:
        return self._chown(user, self.templates, number, "template", uid, gid)

    def do_template_lock(self, user: User, number: int, level: int, test: bool = False) -> int:
        self._change(user, self.templates, number, "template").lock = (level, user.id)
        return number

    def do_template_unlock(self, user: User, number: int) -> int:
        self._get(self.templates, number, "template").lock = None
        return number

    def do_template_delete(self, user: User, number: int, images: bool = False) -> int:
        found = self._change(user, self.templates, number, "template")
        for name, value in found.pairs if images else []:
            image = self.images.get(int(value.get("IMAGE_ID", -1))) if isinstance(value, dict) else None
            if name == "DISK" and image and image.state == READY:
                self.do_image_delete(user, image.id)
        del self.templates[number]
        return number

    def do_template_instantiate(self, user: User, number: int, name: str = "", *_more: t.Any) -> int:
        found = self._get(self.templates, number, "template")
        self._must(user, "USE", "TEMPLATE", found)
        used = []
        for key, value in found.pairs:
            if key == "DISK" and isinstance(value, dict) and "IMAGE_ID" in value:
                image = self._get(self.images, int(value["IMAGE_ID"]), "image")
                self._must(user, "USE", "IMAGE", image)
                if image.state not in (READY, USED):
                    said = f"Image {image.id} is not available, it is in state {STATES[image.state]}"
                    raise Refused(INTERNAL, f"Cannot allocate the VM: {said}", image.id)
                used.append(image)
        vm = self._number("vm")
        for image in used:
            image.vms.add(vm)
            image.state = USED_PERS if image.persistent else USED
        self.vms[vm] = (user.id, name or f"one-{vm}", [image.id for image in used])
        return vm

    def _vm_xml(self, number: int) -> str:
        uid, name, images = self.vms[number]
        vm = Thing(number, uid, self.users[uid].gid, name)
        names = {user.id: user.name for user in self.users.values()}
        rows = [
            *vm.head(names, self.groups),
            *(("LAST_POLL", 0), ("STATE", 3), ("LCM_STATE", 3), ("PREV_STATE", 3), ("PREV_LCM_STATE", 3)),
            *(("RESCHED", 0), ("STIME", vm.regtime), ("ETIME", 0), ("DEPLOY_ID", f"one-{number}"), ("MONITORING", "")),
            ("TEMPLATE", [("DISK", {"IMAGE_ID": image, "DISK_ID": place}) for place, image in enumerate(images)]),
            *(("USER_TEMPLATE", ""), ("HISTORY_RECORDS", "")),
        ]
        return f"<VM>{objects.xml_of(rows)}</VM>"

    def do_vm_info(self, user: User, number: int, decrypt: bool = False) -> str:
        uid, _name, _images = self._get(self.vms, number, "virtual machine")
        if uid != user.id:
            self._must(user, "USE", "VM", about=number)
        return self._vm_xml(number)

    def do_vmpool_info(self, user: User, which: int = -2, start: int = -1, end: int = -1, state: int = -1) -> str:
        mine = [number for number, vm in self.vms.items() if user.gid == 0 or vm[0] == user.id]
        return f"<VM_POOL>{''.join(map(self._vm_xml, mine))}</VM_POOL>"

    def do_vm_action(self, user: User, action: str, number: int) -> int:
        _uid, _name, images = self._get(self.vms, number, "virtual machine")
        for each in images:
            image = self.images[each]
            image.vms.discard(number)
            if not image.vms:
                image.state = READY
        del self.vms[number]
        return int(number)

    # Marketplaces

    def do_marketpool_info(self, user: User, *given: int) -> str:
        return self._pool(user, self.markets, "MARKETPLACE", given)

    def do_marketapppool_info(self, user: User, *given: int) -> str:
        return self._pool(user, self.apps, "MARKETPLACEAPP", given)

    def do_marketapp_info(self, user: User, number: int) -> str:
        app = self._get(self.apps, number, "marketplace app")
        self._must(user, "USE", "MARKETPLACEAPP", app)
        return self._xml(app)

    def do_marketapp_allocate(self, user: User, template: str, market: int) -> int:
        pairs = objects.read_template(template)
        found = self._get(self.markets, market, "marketplace")
        self._must(user, "CREATE", "MARKETPLACEAPP")
        origin = self._get(self.images, int(value_of(pairs, "ORIGIN_ID") or -1), "image")
        if origin.state not in (READY, USED):
            raise Refused(
                ACTION, f"Cannot import image [{origin.id}], it is in state {STATES[origin.state]}", origin.id
            )
        name = value_of(pairs, "NAME")
        self._free_name(self.apps, name, user.id)
        own = ("NAME", "ORIGIN_ID", "TYPE")
        app = App(
            self._number("app"),
            user.id,
            user.gid,
            name,
            0o644,
            [pair for pair in pairs if pair[0] not in own],
            market=market,
            market_name=found.name,
            origin=origin.id,
            size=origin.size,
        )
        self.apps[app.id] = app
        found.apps.add(app.id)

        def done() -> None:
            time.sleep(self.delay)
            app.state = 1

        threading.Thread(target=done, daemon=True).start()
        return app.id

    def do_marketapp_update(self, user: User, number: int, template: str, append: int = 0) -> int:
        return self._update(self._change(user, self.apps, number, "marketplace app"), template, append)

    def do_marketapp_rename(self, user: User, number: int, name: str) -> int:
        return self._rename(self.apps, self._change(user, self.apps, number, "marketplace app"), name)

    def do_marketapp_enable(self, user: User, number: int, enable: bool) -> int:
        self._change(user, self.apps, number, "marketplace app").state = 1 if enable else 4
        return number

    def do_marketapp_chmod(self, user: User, number: int, *bits: int) -> int:
        return self._chmod(user, self.apps, number, "marketplace app", bits)

    def do_marketapp_chown(self, user: User, number: int, uid: int, gid: int) -> int:
        return self._chown(user, self.apps, number, "marketplace app", uid, gid)

    def do_marketapp_delete(self, user: User, number: int) -> int:
        app = self._change(user, self.apps, number, "marketplace app")
        self.markets[app.market].apps.discard(number)
        del self.apps[number]
        return number


def _timeless(name: str) -> str:
    return re.sub(r"^EXPIRED_\d+_", "EXPIRED_", name)


def _reset(request: http.server.BaseHTTPRequestHandler) -> None:
    request.close_connection = True
    with contextlib.suppress(OSError):
        request.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        request.connection.shutdown(socket.SHUT_RD)
        request.connection.close()
