"""The permission rule, against a literal re-statement of the specification and a table of cases."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.ops import DOMID_ANY
from protocol.permissions import BOTH, NONE, READ, WRITE
from tests.model.support import examples
from xenstore_state.access import (
    IGNORED,
    OWNER,
    Acl,
    Subject,
    allows,
    encode,
    inherited,
    mentions,
    names,
    owner,
    rights,
    without,
)

ALL = READ | WRITE | OWNER
DOMIDS = st.sampled_from([0, 1, 2, 3, DOMID_ANY])
LETTERS = st.sampled_from([NONE, READ, WRITE, BOTH])
ACLS: st.SearchStrategy[Acl] = st.builds(
    lambda first, rest: (first, *rest),
    st.tuples(LETTERS, DOMIDS),
    st.lists(st.tuples(st.builds(lambda a, i: a | i, LETTERS, st.sampled_from([0, IGNORED])), DOMIDS), max_size=4),
)


def subject(domid: int, *, privileged: bool = False, target: int | None = None) -> Subject:
    """A subject without quotas."""
    who = Subject(domid, privileged=privileged)
    who.target = target
    return who


SUBJECTS = st.builds(
    lambda domid, privileged, target: subject(domid, privileged=privileged, target=target),
    st.sampled_from([1, 2, 3]),
    st.sampled_from([False, False, False, True]),
    st.sampled_from([None, 1, 2]),
)


def naive_rights(acl: Acl, who: Subject) -> int:
    """Step by step, as core.c: perm_for_conn is specified."""

    def is_me(domid: int) -> bool:
        return domid == who.domid or (who.target is not None and domid == who.target) or domid == DOMID_ANY

    # 1. privileged: everything
    if who.privileged:
        return ALL
    # 2. the domid of entry 0 is mine, my target's, or any: the owner may do everything
    if is_me(acl[0][1]):
        return ALL
    # 3. the first entry from 1 on that is not ignored and fits grants exactly its letter
    for access, domid in acl[1:]:
        if access & IGNORED:
            continue
        if is_me(domid):
            return access & BOTH
    # 4. the letter of entry 0
    return acl[0][0] & BOTH


@examples(400)
@given(ACLS, SUBJECTS)
def test_rights_are_those_of_the_specification(acl: Acl, who: Subject) -> None:
    assert rights(acl, who) == naive_rights(acl, who)


@examples(200)
@given(ACLS, SUBJECTS, st.integers(1, 15).map(lambda n: n & ALL))
def test_a_request_needs_all_the_rights_it_wants(acl: Acl, who: Subject, wanted: int) -> None:
    assert allows(acl, who, wanted) == all(naive_rights(acl, who) & bit for bit in (READ, WRITE, OWNER) if wanted & bit)


@pytest.mark.parametrize(
    ("acl", "domid", "granted"),
    [
        # the letter of entry 0 is for everybody who is not listed
        (((NONE, 0),), 1, NONE),
        (((READ, 0),), 1, READ),
        (((WRITE, 0),), 1, WRITE),
        (((BOTH, 0),), 1, BOTH),
        # the owner may do everything, whatever the letter
        (((NONE, 1),), 1, ALL),
        (((NONE, 1), (NONE, 1)), 1, ALL),
        # an entry beats the letter of entry 0, even if it grants less
        (((READ, 0), (NONE, 1)), 1, NONE),
        (((NONE, 0), (BOTH, 1)), 1, BOTH),
        (((READ, 0), (WRITE, 1)), 1, WRITE),
        (((READ, 0), (WRITE, 1)), 2, READ),
        # the first entry that fits decides, later ones are dead
        (((NONE, 0), (NONE, 1), (BOTH, 1)), 1, NONE),
        (((NONE, 0), (READ, 1), (WRITE, 1)), 1, READ),
        # an ignored entry is passed over
        (((NONE, 0), (BOTH | IGNORED, 1)), 1, NONE),
        (((READ, 0), (NONE | IGNORED, 1)), 1, READ),
        (((NONE, 0), (NONE | IGNORED, 1), (BOTH, 1)), 1, BOTH),
        # DOMID_ANY fits everybody, in its place in the list
        (((NONE, 0), (READ, DOMID_ANY)), 1, READ),
        (((NONE, 0), (READ, DOMID_ANY), (BOTH, 1)), 1, READ),
        (((NONE, 0), (BOTH, 1), (READ, DOMID_ANY)), 1, BOTH),
        (((NONE, 0), (BOTH, 1), (READ, DOMID_ANY)), 2, READ),
        (((NONE, DOMID_ANY),), 1, ALL),
        (((NONE, 0), (READ | IGNORED, DOMID_ANY)), 1, NONE),
    ],
)
def test_rights_of_an_unprivileged_domain(acl: Acl, domid: int, granted: int) -> None:
    assert rights(acl, subject(domid)) == granted


def test_the_privileged_domain_may_do_everything() -> None:
    assert rights(((NONE, 7), (NONE, 0)), subject(0, privileged=True)) == ALL


def test_domid_zero_is_not_privileged_by_its_number() -> None:
    assert rights(((NONE, 7),), subject(0)) == NONE


def test_a_domain_has_its_targets_rights_too() -> None:
    """SET_TARGET: ownership and entries, whichever comes first."""
    who = subject(1, target=2)
    assert rights(((NONE, 2),), who) == ALL
    assert rights(((NONE, 0), (READ, 2), (WRITE, 1)), who) == READ
    assert rights(((NONE, 0), (WRITE, 1), (READ, 2)), who) == WRITE
    assert rights(((NONE, 2),), subject(1)) == NONE


def test_a_target_of_domid_zero_is_a_target_like_any_other() -> None:
    assert rights(((NONE, 0),), subject(1, target=0)) == ALL
    assert rights(((NONE, 3),), subject(1, target=0)) == NONE


# ---- what a new node gets


@examples(100)
@given(ACLS, SUBJECTS)
def test_a_new_node_has_its_parents_list_and_belongs_to_its_creator(acl: Acl, who: Subject) -> None:
    new = inherited(acl, who)
    assert new[1:] == acl[1:]
    assert new[0][0] == acl[0][0]
    assert owner(new) == (acl[0][1] if who.privileged else who.domid)


def test_a_node_made_for_a_target_belongs_to_the_maker() -> None:
    assert inherited(((NONE, 2),), subject(1, target=2)) == ((NONE, 1),)


def test_what_the_privileged_domain_makes_below_a_guests_node_is_the_guests() -> None:
    assert inherited(((NONE, 5), (READ, 6)), subject(0, privileged=True)) == ((NONE, 5), (READ, 6))


# ---- as text


def test_get_perms_shows_ignored_entries_like_any_other() -> None:
    assert encode(((NONE, 0), (READ | IGNORED, 9), (BOTH, DOMID_ANY))) == b"n0\0r9\0b32757\0"


def test_domids_are_shown_signed() -> None:
    assert encode(((WRITE, 2**32 - 1), (READ, 70000))) == b"w-1\0r70000\0"


def test_what_a_domain_that_is_gone_was_given_goes_even_if_it_never_counted() -> None:
    acl = ((READ, 1), (WRITE, 5), (READ | IGNORED, 5), (READ, 6))
    assert without(acl, 5) == ((READ, 1), (READ, 6))
    assert names(acl, 5)
    assert not mentions(without(acl, 5), 5)
    assert mentions(acl[:1] + acl[2:], 5)
    assert not names(acl[:1] + acl[2:], 5)
