"""Domains in the store: what begins and ends with a ring's connection, with a domain, and with its number.

`World` is a store whose domains are introduced as State's offers and Logic's records would have it; requests are made
through the effects, which both perform.
"""

from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import StoreError
from protocol.ops import DOMID_ANY, FEATURE_DOMID_ANY
from protocol.ring import ERROR_RING_INDEX
from recovery_box.items import Connection, ItemError
from tests.model.support import examples
from xenstore_state import effects, quotas
from xenstore_state.access import IGNORED, Acl
from xenstore_state.domains import PRIVILEGED, Domain, Offer, can_exist
from xenstore_state.quotas import node_size
from xenstore_state.store import INTRODUCE_DOMAIN, RELEASE_DOMAIN, Store
from xenstore_state.tree import Node, Parts

NONE, READ, WRITE, BOTH = 0, 1, 2, 3
ANYTHING = -1
"""A watch's depth without limit."""


def parts_of(path: bytes) -> Parts:
    """Names of an ordinary path."""
    return tuple(path.split(b"/")[1:])


class World:
    """A store, a toolstack, and domains 5, 6 and 7, each with a home that it owns."""

    def __init__(self) -> None:
        self.store = Store()
        self.last_id = 1
        self.toolstack = Connection(1, 0, -1, PRIVILEGED, privileged=True, socket=True)
        self.store.connect(self.toolstack)
        for domid in (5, 6, 7):
            self.begin(domid)

    def begin(self, domid: int) -> Connection:
        """A domain comes to be, is introduced, and gets a home."""
        self.store.domains.learn(domid, domid + 100 * self.last_id)
        ring = self.introduce(domid)
        self.does(effects.WRITE, self.home(domid), b"")
        self.does(effects.SET_PERMS, self.home(domid), ((NONE, domid),))
        return ring

    def introduce(self, domid: int) -> Connection:
        """An introduction, as State has made it possible."""
        self.last_id += 1
        self.store.domains.offers[domid] = Offer(self.last_id, self.last_id, 1000 + self.last_id, 7)
        return self.store.introduce(domid)

    def domain(self, domid: int) -> Domain:
        return self.store.domains.known.find(domid)

    def ring(self, domid: int) -> Connection:
        """A domain's connection."""
        ring = self.domain(domid).connection
        assert ring is not None
        return ring

    @staticmethod
    def home(domid: int) -> bytes:
        return b"/local/domain/%d" % domid

    def does(self, kind: int, *arguments: Any, by: int = PRIVILEGED, tx: int = 0) -> Any:
        """An effect on a node, of the toolstack's or of a domain's."""
        actor = self.toolstack if by == PRIVILEGED else self.ring(by)
        return effects.PERFORM[kind](self.store, actor, tx, *arguments)

    def outcome(self, kind: int, *arguments: Any, by: int = PRIVILEGED, tx: int = 0) -> str:
        """The same; "" or the error's name."""
        try:
            self.does(kind, *arguments, by=by, tx=tx)
        except StoreError as e:
            return e.name
        return ""

    def start(self, by: int = PRIVILEGED) -> int:
        """A transaction."""
        actor = self.toolstack if by == PRIVILEGED else self.ring(by)
        tx_id = self.store.next_tx_id(actor)
        self.store.start(actor, tx_id)
        return tx_id

    def acl(self, path: bytes) -> Acl:
        node = self.store.tree.specials.get(path) or self.store.tree.find(parts_of(path))
        assert node is not None
        return node.acl

    def exists(self, path: bytes) -> bool:
        return self.store.tree.find(parts_of(path)) is not None


@pytest.fixture
def world() -> World:
    return World()


# ---- introduction


def test_an_introduction_takes_what_was_offered() -> None:
    store = Store()
    store.domains.learn(5, 77)
    store.domains.offers[5] = Offer(9, 3, 4, 7)
    ring = store.introduce(5)
    assert (ring.id, ring.slot, ring.port, ring.fd, ring.domid) == (9, 3, 4, -1, 5)
    assert (ring.socket, ring.privileged) == (False, False)
    assert not store.domains.offers
    assert store.opened == [ring]
    assert store.items.connections.find(9) is ring
    domain = store.domains.known.find(5)
    assert (domain.introduced, domain.connection, domain.error) == (True, ring, 0)


@pytest.mark.parametrize("known", [False, True])
def test_nothing_is_introduced_without_an_offer_or_without_being_known(known: bool) -> None:
    store = Store()
    if known:
        store.domains.learn(5, 77)
    else:
        store.domains.offers[5] = Offer(9, 3, 4, 7)
    with pytest.raises(StoreError, match="ENOENT"):
        store.introduce(5)
    assert (len(store.items.connections), store.opened) == (0, [])


def test_the_ring_of_domain_0_is_privileged_and_no_quota_binds_it(world: World) -> None:
    ring = world.introduce(PRIVILEGED)
    assert (ring.privileged, ring.subject.privileged, ring.subject.quotas) == (True, True, None)


def test_a_ring_is_bound_by_the_quotas_of_its_domain_as_they_are_at_any_time(world: World) -> None:
    effects.set_quota(world.store, world.toolstack, 5, "watches", 3)
    assert world.ring(5).subject.quotas["watches"] == 3
    assert world.ring(6).subject.quotas["watches"] == 128


def test_an_introduction_of_an_introduced_domain_begins_anew_and_leaves_its_nodes(world: World) -> None:
    store, old = world.store, world.ring(5)
    store.watch(old, b"/a", b"t", None, 0)
    tx_id = world.start(by=5)
    world.does(effects.WRITE, b"/local/domain/5/x", b"1", by=5, tx=tx_id)
    world.does(effects.WRITE, b"/local/domain/5/y", b"2", by=5)
    store.set_target(5, 6)
    new = world.introduce(5)
    assert (old.closed, store.closed) == (True, [old])
    assert (new.watches, new.transactions) == ({}, {})
    assert (len(store.items.watches), len(store.items.transactions), store.watches.count) == (0, 0, 0)
    assert not world.exists(b"/local/domain/5/x")
    assert world.exists(b"/local/domain/5/y")
    assert new.subject.target == 6
    assert new.subject.held == 0
    assert world.start(by=5) == tx_id + 1, (
        "a late reply to the old connection must not name a transaction of the new one"
    )


# ---- a ring that is ignored


def test_an_ignored_ring_leaves_the_domain_what_it_is(world: World) -> None:
    old = world.ring(5)
    world.store.watch(old, b"/a", b"t", None, 0)
    world.store.ignore(5, ERROR_RING_INDEX)
    domain = world.domain(5)
    assert (domain.introduced, domain.connection, domain.error) == (True, None, ERROR_RING_INDEX)
    assert world.store.closed == [old]
    assert world.store.watches.count == 0
    assert world.acl(world.home(5)) == ((NONE, 5),)
    with pytest.raises(StoreError, match="ENOENT"):
        world.store.ignore(5, ERROR_RING_INDEX)
    world.introduce(5)
    assert (domain.error, domain.connection is not None) == (0, True)


@pytest.mark.parametrize("domid", [8, PRIVILEGED], ids=["unknown", "without a ring"])
def test_a_domain_without_a_ring_cannot_be_ignored(world: World, domid: int) -> None:
    with pytest.raises(StoreError, match="ENOENT"):
        world.store.ignore(domid, ERROR_RING_INDEX)


# ---- the end


def test_domain_0_does_not_end_and_an_unknown_domain_has_no_end(world: World) -> None:
    with pytest.raises(StoreError, match="EINVAL"):
        world.store.remove_domain(PRIVILEGED)
    with pytest.raises(StoreError, match="ENOENT"):
        world.store.remove_domain(8)


@pytest.mark.parametrize("ignored", [False, True])
def test_with_a_domain_go_its_connection_and_itself(world: World, ignored: bool) -> None:
    ring = world.ring(5)
    if ignored:
        world.store.ignore(5, ERROR_RING_INDEX)
    world.store.remove_domain(5)
    assert world.store.closed == [ring]
    assert 5 not in world.store.domains.known
    assert world.store.items.connections.get(ring.id) is None


def test_with_a_domain_go_its_nodes_and_whatever_stands_below_them(world: World) -> None:
    for path in (b"/local/domain/5/a/b", b"/shared/of5/x", b"/shared/of6"):
        world.does(effects.WRITE, path, b"")
    world.does(effects.SET_PERMS, b"/shared/of5", ((NONE, 5),))
    world.does(effects.SET_PERMS, b"/shared/of5/x", ((NONE, 6),))
    world.does(effects.SET_PERMS, b"/shared/of6", ((NONE, 6),))
    fired = world.store.remove_domain(5)
    assert [parts for parts, _, _ in fired] == [parts_of(world.home(5)), parts_of(b"/shared/of5")]
    assert not world.exists(world.home(5))
    assert not world.exists(b"/shared/of5")
    assert world.exists(b"/shared/of6")
    assert (world.store.tree.owned.get(5, 0), world.store.tree.memory.get(5, 0)) == (0, 0)


def test_a_domain_that_is_no_more_stands_in_no_list_and_nobody_is_told_of_that(world: World) -> None:
    world.does(effects.WRITE, b"/a", b"")
    world.does(effects.SET_PERMS, b"/a", ((READ, 6), (WRITE, 5), (READ, 7), (BOTH, 5)))
    world.does(effects.SET_PERMS, RELEASE_DOMAIN, ((NONE, 0), (READ, 5), (READ, 6)))
    fired = world.store.remove_domain(5)
    assert [parts for parts, _, _ in fired] == [parts_of(world.home(5))]
    assert world.acl(b"/a") == ((READ, 6), (READ, 7))
    assert world.acl(RELEASE_DOMAIN) == ((NONE, 0), (READ, 6))


def test_nodes_of_a_dead_domain_pass_to_domain_0_if_that_is_wished(world: World) -> None:
    world.store.domains.keep_orphans = True
    world.does(effects.WRITE, b"/local/domain/5/a", b"", by=5)
    world.does(effects.SET_PERMS, b"/local/domain/5/a", ((READ, 5), (WRITE, 6)), by=5)
    assert world.store.remove_domain(5) == []
    assert world.acl(world.home(5)) == ((NONE, PRIVILEGED),)
    assert world.acl(b"/local/domain/5/a") == ((READ, PRIVILEGED), (WRITE, 6))
    assert world.store.tree.owned.get(5, 0) == 0


def test_the_root_passes_to_domain_0(world: World) -> None:
    world.does(effects.SET_PERMS, b"/", ((READ, 5), (WRITE, 6)))
    world.store.remove_domain(5)
    assert world.store.tree.root.acl == ((READ, PRIVILEGED), (WRITE, 6))


@pytest.mark.parametrize("name", [RELEASE_DOMAIN, INTRODUCE_DOMAIN])
def test_a_special_node_passes_to_domain_0(world: World, name: bytes) -> None:
    world.does(effects.SET_PERMS, name, ((READ, 5), (READ, 6)))
    world.store.remove_domain(5)
    assert world.acl(name) == ((READ, PRIVILEGED), (READ, 6))


@pytest.mark.parametrize("ended", [6, 7])
def test_the_next_domain_of_a_number_inherits_nothing(world: World, ended: int) -> None:
    store = world.store
    world.does(effects.WRITE, b"/a", b"secret")
    world.does(effects.SET_PERMS, b"/a", ((NONE, 0), (BOTH, 6), (BOTH, 7)))
    effects.set_quota(store, world.toolstack, ended, "watches", 3)
    store.watch(world.ring(ended), b"/a", b"t", None, 0)
    world.start(by=ended)
    store.set_target(ended, 5)
    store.set_target(5, ended)
    store.remove_domain(ended)
    store.domains.learn(ended, 4711)
    domain = world.domain(ended)
    assert (domain.introduced, domain.target, domain.shutdown, domain.gone) == (False, None, False, False)
    assert domain.quotas == quotas.defaults()
    assert (world.domain(5).target, world.ring(5).subject.target) == (None, None)
    ring = world.introduce(ended)
    assert (ring.watches, ring.transactions, ring.subject.target, ring.subject.held) == ({}, {}, None, 0)
    assert world.outcome(effects.READ, b"/a", by=ended) == "EACCES"
    assert world.start(by=ended) == 1


def test_a_domain_cannot_be_known_twice(world: World) -> None:
    with pytest.raises(ItemError):
        world.store.domains.learn(5, 1)


# ---- targets


def test_a_target_and_who_has_it_must_be_introduced(world: World) -> None:
    world.store.domains.learn(8, 1)
    for domid, target in ((5, 8), (8, 5), (5, 9), (9, 5)):
        with pytest.raises(StoreError, match="ENOENT"):
            world.store.set_target(domid, target)
    assert world.domain(5).target is None


def test_a_target_lends_its_rights_until_it_ends(world: World) -> None:
    world.does(effects.WRITE, b"/a", b"")
    world.does(effects.SET_PERMS, b"/a", ((NONE, 6),))
    world.store.set_target(5, 6)
    assert world.outcome(effects.WRITE, b"/a", b"by its target's right", by=5) == ""
    world.does(effects.SET_PERMS, b"/a", ((NONE, 0), (BOTH, 6)))
    world.store.remove_domain(6)
    world.begin(6)
    world.does(effects.SET_PERMS, b"/a", ((NONE, 0), (BOTH, 6)))
    assert world.outcome(effects.READ, b"/a", by=5) == "EACCES"


def test_a_domain_without_a_connection_gets_its_target_with_the_next_one(world: World) -> None:
    world.store.ignore(5, ERROR_RING_INDEX)
    world.store.set_target(5, 6)
    assert world.introduce(5).subject.target == 6


# ---- transactions of others


@pytest.mark.parametrize("again", [False, True], ids=["gone", "another of its number"])
@pytest.mark.parametrize("by", [PRIVILEGED, 6])
def test_a_permission_list_never_comes_to_name_another_domain_by_a_commit(world: World, by: int, again: bool) -> None:
    world.does(effects.WRITE, b"/local/domain/6/a", b"", by=6)
    tx_id = world.start(by=by)
    world.does(effects.SET_PERMS, b"/local/domain/6/a", ((NONE, 6), (BOTH, 5)), by=by, tx=tx_id)
    world.store.remove_domain(5)
    if again:
        world.begin(5)
    actor = world.toolstack if by == PRIVILEGED else world.ring(by)
    with pytest.raises(StoreError, match="EAGAIN"):
        effects.commit(world.store, actor, tx_id)
    assert world.acl(b"/local/domain/6/a") == ((NONE, 6),)


def test_a_node_made_in_a_transaction_below_a_dead_domains_is_not_made(world: World) -> None:
    tx_id = world.start()
    world.does(effects.WRITE, b"/local/domain/5/a/b", b"", tx=tx_id)
    world.store.remove_domain(5)
    world.begin(5)
    with pytest.raises(StoreError, match="EAGAIN"):
        effects.commit(world.store, world.toolstack, tx_id)
    assert not world.exists(b"/local/domain/5/a")


def test_a_node_made_in_a_transaction_does_not_inherit_an_entry_for_a_dead_domain(world: World) -> None:
    world.does(effects.WRITE, b"/a", b"")
    world.does(effects.SET_PERMS, b"/a", ((NONE, 6), (BOTH, 5)))
    tx_id = world.start()
    world.does(effects.MKDIR, b"/a/b", tx=tx_id)
    world.store.remove_domain(5)
    world.begin(5)
    with pytest.raises(StoreError, match="EAGAIN"):
        effects.commit(world.store, world.toolstack, tx_id)


def test_a_transaction_that_has_nothing_to_do_with_a_dead_domain_commits(world: World) -> None:
    tx_id = world.start()
    world.does(effects.WRITE, b"/a/b", b"1", tx=tx_id)
    world.does(effects.SET_PERMS, b"/a/b", ((NONE, 6), (READ, 7)), tx=tx_id)
    world.does(effects.READ, b"/tool/xenstored", tx=tx_id)
    world.store.remove_domain(5)
    effects.commit(world.store, world.toolstack, tx_id)
    assert world.acl(b"/a/b") == ((NONE, 6), (READ, 7))


@pytest.mark.parametrize("kind", [effects.READ, effects.GET_PERMS, effects.DIRECTORY])
def test_a_transaction_that_was_told_of_a_dead_domains_node_has_to_ask_again(world: World, kind: int) -> None:
    tx_id = world.start()
    world.does(kind, world.home(5), tx=tx_id)
    world.does(effects.WRITE, b"/a", b"", tx=tx_id)
    world.store.remove_domain(5)
    with pytest.raises(StoreError, match="EAGAIN"):
        effects.commit(world.store, world.toolstack, tx_id)


def test_a_domains_own_transactions_end_with_it(world: World) -> None:
    tx_id = world.start(by=5)
    world.does(effects.WRITE, b"/local/domain/5/a", b"", by=5, tx=tx_id)
    subject = world.ring(5).subject
    assert subject.held > 0
    world.store.remove_domain(5)
    assert len(world.store.items.transactions) == 0
    assert subject.held == 0


# ---- entries for domains that do not exist


def test_an_entry_for_a_domain_that_does_not_exist_yet_does_not_come_to_mean_it(world: World) -> None:
    world.does(effects.WRITE, b"/a", b"")
    world.does(effects.SET_PERMS, b"/a", ((NONE, 0), (BOTH, 8)))
    assert world.acl(b"/a") == ((NONE, 0), (BOTH | IGNORED, 8))
    world.begin(8)
    assert world.outcome(effects.READ, b"/a", by=8) == "EACCES"
    world.does(effects.SET_PERMS, b"/a", ((NONE, 0), (BOTH, 8)))
    assert world.outcome(effects.READ, b"/a", by=8) == ""


def test_an_entry_that_never_counted_goes_with_the_domain_that_it_names(world: World) -> None:
    """domain.c: domain_tree_remove_sub"""
    for path in (b"/a", b"/a/b", RELEASE_DOMAIN):
        if path[:1] == b"/":
            world.does(effects.WRITE, path, b"")
        world.does(effects.SET_PERMS, path, ((NONE, 0), (BOTH, 8), (READ, 9), (READ, 5)))
    for _ in range(2):
        world.begin(8)
        world.store.remove_domain(8)
        for path in (b"/a", b"/a/b", RELEASE_DOMAIN):
            assert world.acl(path) == ((NONE, 0), (READ | IGNORED, 9), (READ, 5))


def test_nobody_can_give_a_node_to_a_domain_that_does_not_exist(world: World) -> None:
    assert world.outcome(effects.SET_PERMS, b"/tool", ((NONE, 8),)) == "ENOENT"
    assert world.outcome(effects.SET_PERMS, b"/tool", ((NONE, DOMID_ANY),)) == ""
    world.domain(5).features &= ~FEATURE_DOMID_ANY
    assert world.outcome(effects.SET_PERMS, world.home(5), ((NONE, DOMID_ANY),), by=5) == "ENOENT"


@pytest.mark.parametrize(
    ("domid", "can"), [(0, True), (0x7FEF, True), (0x7FF0, False), (DOMID_ANY, False), (-1, False)]
)
def test_which_numbers_domains_can_have(domid: int, can: bool) -> None:
    assert can_exist(domid) == can


# ---- accounting

PATHS: Final = (b"/s", b"/s/a", b"/s/a/b", b"/local/domain/5", b"/local/domain/5/x", b"/local/domain/6/x/y")
ACLS: Final = (((NONE, 5),), ((BOTH, 6),), ((BOTH, 0), (READ, 5), (WRITE, 6)), ((BOTH, 7), (BOTH, 5)))
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just(effects.WRITE), st.sampled_from([0, 5, 6]), st.sampled_from(PATHS), st.binary(max_size=40)),
        st.tuples(st.just(effects.MKDIR), st.sampled_from([0, 5, 6]), st.sampled_from(PATHS)),
        st.tuples(st.just(effects.RM), st.sampled_from([0, 5]), st.sampled_from(PATHS)),
        st.tuples(st.just(effects.SET_PERMS), st.just(0), st.sampled_from(PATHS), st.sampled_from(ACLS)),
        st.tuples(st.just("watch"), st.sampled_from([5, 6]), st.sampled_from(PATHS)),
        st.tuples(st.sampled_from(["start", "commit", "abort", "introduce", "ignore", "end"]), st.sampled_from([5, 6])),
    ),
    max_size=40,
)


def counted(root: Node) -> tuple[dict[int, int], dict[int, int]]:
    """Nodes and bytes by owner, found by looking at every node."""
    owned: dict[int, int] = {}
    memory: dict[int, int] = {}
    stack: list[tuple[Parts, Node]] = [((), root)]
    while stack:
        parts, node = stack.pop()
        children = node.children or {}
        domid = node.acl[0][1]
        owned[domid] = owned.get(domid, 0) + 1
        size = node_size(node.value, len(node.acl), sum(len(name) + 1 for name in children))
        memory[domid] = memory.get(domid, 0) + size + sum(map(len, parts)) + len(parts)
        stack += [((*parts, name), child) for name, child in children.items()]
    memory.pop(PRIVILEGED, None)
    return owned, memory


def step(world: World, what: int | str, by: int, rest: tuple[Any, ...]) -> None:
    """Does something, in the guest's open transaction if it has one."""
    domain = world.store.domains.known.get(by)
    ring = domain.connection if domain is not None else None
    if isinstance(what, int):
        if by == PRIVILEGED or ring is not None:
            tx_id = next(iter(ring.transactions), 0) if ring is not None and by != PRIVILEGED else 0
            world.outcome(what, *rest, by=by, tx=tx_id)
        return
    if what == "end" and domain is not None:
        world.store.remove_domain(by)
    elif what == "introduce":
        if domain is None:
            world.store.domains.learn(by, world.last_id + 1000)
        world.introduce(by)
    elif ring is None:
        return
    elif what == "ignore":
        world.store.ignore(by, ERROR_RING_INDEX)
    elif what == "watch":
        if (rest[0], b"token") not in ring.watches:
            world.store.watch(ring, rest[0], b"token", None, 0)
    elif what == "start" and not ring.transactions:
        world.start(by=by)
    elif what in {"commit", "abort"} and ring.transactions:
        tx_id = next(iter(ring.transactions))
        try:
            (effects.commit if what == "commit" else effects.abort)(world.store, ring, tx_id)
        except StoreError:
            pass


@examples(150)
@given(STEPS)
def test_what_domains_are_charged_with_is_what_there_is(steps: list[tuple[Any, ...]]) -> None:
    world = World()
    store = world.store
    subjects = []
    for what, by, *rest in steps:
        subjects += [connection.subject for connection in store.items.connections]
        step(world, what, by, tuple(rest))
        assert (store.tree.owned, store.tree.memory) == counted(store.tree.root)
        for ring in store.items.connections:
            if ring.subject.quotas is not None:
                watches = sum(len(path) + len(token) for path, token in ring.watches)
                assert ring.subject.held == watches + sum(t.held for t in ring.transactions.values())
    for domid in (5, 6, 7):
        if domid in store.domains.known:
            store.remove_domain(domid)
    assert set(store.tree.owned) == {PRIVILEGED}
    assert store.tree.memory == {}
    assert all(subject.held == 0 for subject in subjects)
    assert (store.watches.count, len(store.items.watches), len(store.items.transactions)) == (0, 0, 0)
