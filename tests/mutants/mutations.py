"""The mutations: each replaces one piece of one module's text, as it is imported; nothing in the modules knows of it.

`tests` are those that are run against it, in this order, until one fails.  A piece that does not stand exactly once in its
module is an error: the mutation must follow the code.
"""

from typing import Final, NamedTuple

USUAL: Final = (
    "tests/model/test_model.py",
    "tests/unit/test_transactions.py",
    "tests/unit/test_access.py",
    "tests/unit/test_core.py",
    "tests/unit/test_quotas.py",
    "tests/unit/test_domains.py",
    "tests/conformance/test_cases.py",
)


class Mutation(NamedTuple):
    """One broken daemon."""

    name: str
    what: str
    module: str
    old: str
    new: str
    tests: tuple[str, ...] = USUAL


def _(name: str, what: str, module: str, old: str, new: str, *tests: str) -> Mutation:
    return Mutation(name, what, module, old, new, tests) if tests else Mutation(name, what, module, old, new)


VIEWS, ACCESS, TREE = "xenstore_state.views", "xenstore_state.access", "xenstore_state.tree"
TRANSACTIONS, STORE, WATCHES = "xenstore_state.transactions", "xenstore_state.store", "xenstore_state.watches"
EFFECTS, RECORDS, QUOTAS = "xenstore_state.effects", "xenstore_state.records", "xenstore_state.quotas"
CORE, REQUESTS, DOMAINS = "xenstore_logic.core", "xenstore_logic.requests", "xenstore_logic.domains"

MUTATIONS: Final = (
    # ---- permissions
    _(
        "write-unchecked",
        "WRITE of an existing node asks for no right",
        VIEWS,
        "return self.put(parts, value, who, NEW)\n        if not who.privileged and",
        "return self.put(parts, value, who, NEW)\n        if False and",
    ),
    _(
        "rm-unchecked",
        "RM asks for no right",
        VIEWS,
        "if not who.privileged and not rights((found or self.nearest(parts)).acl, who) & WRITE:",
        "if False:",
    ),
    _(
        "create-unchecked",
        "creating a node asks its parent for no right",
        VIEWS,
        "if not rights(parent.acl, who) & WRITE:\n            raise",
        "if False:\n            raise",
    ),
    _(
        "set-perms-by-anybody",
        "SET_PERMS asks for the right to write, not for the owner",
        VIEWS,
        "found = self.permitted(parts, who, WRITE | OWNER)",
        "found = self.permitted(parts, who, WRITE)",
    ),
    _(
        "give-away",
        "an unprivileged owner may give its node away",
        VIEWS,
        "if not who.privileged and found.acl[0][1] != acl[0][1]:",
        "if False:",
    ),
    _(
        "nothing-hidden",
        "whoever may not know is told that there is nothing: ENOENT for EACCES",
        VIEWS,
        "if who.privileged or rights(self.nearest(parts).acl, who) & wanted:",
        "if True:",
    ),
    _(
        "last-entry-decides",
        "the last entry of a permission list that fits decides, not the first",
        ACCESS,
        "for entry, domid in acl[1:]:",
        "for entry, domid in reversed(acl[1:]):",
    ),
    _(
        "dead-entries-count",
        "an entry for a domain that did not exist when it was written counts",
        ACCESS,
        "if domid in mine and not entry & IGNORED:",
        "if domid in mine:",
    ),
    _(
        "heirs",
        "a node made by a guest belongs to its parent's owner",
        ACCESS,
        "return ((acl[0][0], creator.domid), *acl[1:])",
        "return acl",
    ),
    _(
        "privileged-for-all",
        "operations of the privileged domain are open to guests",
        CORE,
        "if privileged and not by.privileged:",
        "if False:",
    ),
    _(
        "rights-outlive-domains",
        "a domain that ends leaves its entries in others' permission lists",
        STORE,
        "acl = without(node.acl, domid)",
        "acl = node.acl",
    ),
    _(
        "target-outlives-domain",
        "whoever stood in for a domain that has ended still does",
        STORE,
        "if other.target == domid:",
        "if False:",
    ),
    # ---- nodes
    _(
        "rm-leaves-root",
        "RM takes what is below a node, and leaves the node",
        TREE,
        "del children[name]\n",
        "child.children = None\n",
    ),
    _(
        "orphans",
        "the nodes of a domain that ends stay",
        STORE,
        "return self.live.remove(parts)\n            acl = ((acl[0][0], PRIVILEGED), *acl[1:])",
        "return []\n            acl = ((acl[0][0], PRIVILEGED), *acl[1:])",
    ),
    _(
        "generation-stands",
        "the generation does not move when a value is set",
        VIEWS,
        "tree.set_value(node, value, tree.generation + 1)",
        "tree.set_value(node, value, tree.generation)",
        "tests/unit/test_core.py",
        "tests/unit/test_tree.py",
        "tests/conformance/test_cases.py",
    ),
    _(
        "parents-with-value",
        "implicit parents get the value, too",
        VIEWS,
        'value if depth == len(parts) else b""',
        "value",
    ),
    _(
        "mkdir-empties",
        "MKDIR of a node that exists sets its value",
        VIEWS,
        "return []\n\n    def _may_create",
        'return self.put(parts, b"", who, found.acl)\n\n    def _may_create',
    ),
    # ---- watches
    _(
        "rm-silent-below",
        "RM tells nobody who watches exactly a node below",
        CORE,
        "in watches.below(parts, removed, parents_first=False):",
        "in ():",
    ),
    _(
        "rm-parents-first",
        "RM tells of parents before what is below them",
        CORE,
        "watches.below(parts, removed, parents_first=False)",
        "watches.below(parts, removed, parents_first=True)",
    ),
    _(
        "events-for-anybody",
        "watchers are told of what they may not read",
        CORE,
        "if connection.privileged or any(allows(acl, connection.subject, READ) for acl in acls):",
        "if True:",
    ),
    _(
        "rights-before-forgotten",
        "who could read a node before SET_PERMS is not told of it",
        CORE,
        "return [before, *acls] if before else acls",
        "return acls",
    ),
    _(
        "watch-order",
        "watchers are told in reverse order of registration",
        WATCHES,
        "return watch.sequence",
        "return -watch.sequence",
    ),
    _(
        "depth-off-by-one",
        "a watch with a depth is told of one level more",
        WATCHES,
        "w.depth >= left]",
        "w.depth + 1 >= left]",
    ),
    _(
        "relative-told-absolute",
        "a watch by a relative path is told absolute ones",
        CORE,
        "event = watch_event(path[watch.strip :], watch.token)",
        "event = watch_event(path, watch.token)",
    ),
    _(
        "no-first-event",
        "WATCH gives no first event",
        REQUESTS,
        "core.late_events.append((by, event))",
        "pass",
    ),
    _(
        "first-event-before-reply",
        "the first event of a watch comes before the reply",
        REQUESTS,
        "core.late_events.append((by, event))",
        "core.events.append((by, event))",
    ),
    _(
        "reset-forgets-one",
        "RESET_WATCHES forgets the first watch only",
        STORE,
        "for path, token in list(connection.watches):",
        "for path, token in list(connection.watches)[:1]:",
    ),
    _(
        "introduction-untold",
        "nobody is told of an introduction",
        DOMAINS,
        "if new:\n        core.fire_special(INTRODUCE_DOMAIN, domid)",
        "pass",
    ),
    # ---- transactions
    _(
        "stale-read-commits",
        "a transaction commits although what it read is another value now",
        TRANSACTIONS,
        "if said != error or (operation not in _CHANGING and now != answer):",
        "if said != error:",
    ),
    _(
        "stale-refusal-commits",
        "a transaction commits although what was refused would be done now",
        TRANSACTIONS,
        "if said != error or (operation not in _CHANGING and now != answer):",
        "if (said and said != error) or (not error and operation not in _CHANGING and now != answer):",
    ),
    _(
        "lists-not-compared",
        "a transaction commits although its nodes get other permission lists than it saw",
        TRANSACTIONS,
        "if change.asked and (node is None or node.acl != change.acl):",
        "if False:",
    ),
    _(
        "half-a-transaction",
        "a transaction that cannot commit leaves what it had done by then",
        TRANSACTIONS,
        "except StoreError:\n            tree.rollback(before)\n            raise",
        "except StoreError:\n            raise",
    ),
    _(
        "reads-not-isolated",
        "a transaction reads what others have written since it first looked",
        TRANSACTIONS,
        "seen = self.seen.get(parts)\n        if seen is None:\n            self._count(parts)",
        "seen = None\n        if seen is None:\n            self._count(parts)",
    ),
    _(
        "writes-seen-outside",
        "an abort commits",
        EFFECTS,
        "store.end(by, tx_id).close()",
        "store.end(by, tx_id).commit(by.subject)",
    ),
    _(
        "removed-twice-unchecked",
        "an RM repeated in a transaction is not checked again at commit",
        TRANSACTIONS,
        'if last == entry and (operation != "rm" or error):',
        "if last == entry:",
    ),
    _(
        "the-dead-inherit",
        "a transaction gives rights to a domain that has ended meanwhile",
        TRANSACTIONS,
        "self.stale = self.stale or any(names(acl, domid) for acl in acls)",
        "pass",
        "tests/unit/test_domains.py",
        "tests/model/test_model.py",
    ),
    _(
        "commit-silent",
        "a commit tells nobody",
        REQUESTS,
        "core.fire_committed(core.perform(effects.COMMIT, by, tx_id), accessed)",
        "core.perform(effects.COMMIT, by, tx_id)",
    ),
    # ---- quotas
    _(
        "rm-keeps-count",
        "removed nodes go on counting for their owner",
        TREE,
        "self._account(owner, -count, -charges.get(owner, 0))",
        "self._account(owner, 0, 0)",
    ),
    _(
        "new-owner-not-charged",
        "SET_PERMS by the toolstack does not count the node for its new owner",
        TREE,
        "self._account(after, 1, _charge(node, length) if after != UNCHARGED else 0)",
        "pass",
    ),
    _(
        "one-node-more",
        "a guest may own one node more than its quota",
        VIEWS,
        'claim(who, "nodes", self.tree.owned.get(who.domid, 0) + 1)',
        'claim(who, "nodes", self.tree.owned.get(who.domid, 0))',
    ),
    _(
        "quota-unasked-at-commit",
        "a transaction may create more nodes than its guest may own",
        TRANSACTIONS,
        "if who.quotas and (self.created or now > owned):",
        "if False:",
        "tests/unit/test_quotas.py",
        "tests/model/test_model.py",
    ),
    _(
        "watch-quota-unasked",
        "a guest may set any number of watches",
        STORE,
        'claim(subject, "watches", count)',
        "pass",
    ),
    _(
        "transaction-quota-unasked",
        "a guest may open any number of transactions",
        STORE,
        'claim(connection.subject, "transactions", count)',
        "pass",
    ),
    _(
        "rollback-forgets-accounts",
        "a commit that fails leaves its nodes counted",
        TREE,
        "for domid, (nodes, size) in epoch.accounts.items():\n            self._set_account(domid, nodes, size)",
        "",
    ),
    # ---- State and its records
    _(
        "outcome-unchecked",
        "State takes a record whose effect ends otherwise than Logic says",
        RECORDS,
        "if outcome != recorded:",
        "if False:",
        "tests/unit/test_records.py",
    ),
    _(
        "generation-unchecked",
        "State takes a record after which its tree is not Logic's",
        RECORDS,
        "if generation != self.store.tree.generation:\n            raise BadRecord",
        "if False:\n            raise BadRecord",
        "tests/unit/test_records.py",
    ),
    _(
        "crc-unchecked",
        "State reads journal entries whose checksum is wrong",
        "recovery_box.journal",
        "if crc32(body, (sequence ^ kind_and_length) & _M32) != check:\n                raise",
        "if False:\n                raise",
        "tests/unit/test_journal.py",
    ),
    _(
        "guests-publish",
        "State lets anybody introduce domains",
        EFFECTS,
        "if not by.privileged:\n        raise EINVAL\n    store.introduce(domid)",
        "store.introduce(domid)",
        "tests/unit/test_records.py",
        "tests/unit/test_domains.py",
        "tests/unit/test_registrar.py",
    ),
    # ---- the running daemon
    _(
        "last-output-lost",
        "a new Logic does not make the output of the last record",
        "xenstore_logic.loop",
        "for output in last.outputs if last is not None else ():",
        "for output in ():",
        "tests/unit/test_ring_loop.py",
    ),
    _(
        "guest-not-notified",
        "a guest is not notified of what was put into its ring",
        "xenstore_logic.rings",
        "self._hypervisor.notify(by.port)\n        except",
        "pass\n        except",
        "tests/unit/test_ring_loop.py",
    ),
    _(
        "ring-index-trusted",
        "a guest's index beyond the ring is followed",
        "protocol.ring",
        'raise RingIndexError(f"{there} bytes of requests")',
        "there = RING_SIZE",
        "tests/unit/test_ring_page.py",
    ),
)
