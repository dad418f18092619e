"""Named snapshots of the whole tree, for operators, and going back to one.

A snapshot is a copy: values, permission lists, and the order of children, by path; special nodes and everything else stay as
they are.  Going back changes only what differs, so watches are told of just that.  A right that a domain had then is not
given to another one that has its number now: entries for domains that are gone are left out, and their nodes pass to the
privileged domain.  Knows nothing of who asks.
"""

from typing import Final, NamedTuple

from xenstore_state.access import Acl
from xenstore_state.domains import PRIVILEGED, Domains
from xenstore_state.tree import Parts, Tree, walk_places
from xenstore_state.views import NEW, Fired

SNAPSHOTS_MAX: Final = 8


class Copy(NamedTuple):
    """One snapshot."""

    nodes: tuple[tuple[Parts, bytes, Acl], ...]
    """Names, value and permission list of every node, parents first, siblings in order of creation."""
    identities: dict[int, int]
    """Unique ids of the domains known then, by domid."""


def take(tree: Tree, domains: Domains) -> Copy:
    """Copies the tree as it is."""
    nodes = tuple((parts, node.value, node.acl) for parts, node in walk_places(tree))
    return Copy(nodes, {domain.domid: domain.unique_id for domain in domains.known})


def go_back(tree: Tree, domains: Domains, copy: Copy) -> list[Fired]:
    """Makes the tree what it was; what was changed for that, in order."""
    fired: list[Fired] = []
    then = {parts: (value, _still_valid(acl, domains, copy)) for parts, value, acl in copy.nodes}
    for parts in [parts for parts, _ in walk_places(tree) if parts not in then]:
        parent = tree.find(parts[:-1])
        if parent is not None and parent.children and parts[-1] in parent.children:
            removed = tree.remove_child(parent, tree.generation + 1, parts)
            fired.append((parts, removed, removed.acl))
    for parts, (value, acl) in then.items():
        node = tree.find(parts)
        if node is None:
            parent = tree.find(parts[:-1])
            assert parent is not None  # it came before
            tree.add_child(parent, value, acl, tree.generation + 1, parts)
            fired.append((parts, None, NEW))
            continue
        before = node.acl
        if node.acl != acl:
            tree.set_acl(node, acl, tree.generation + 1, parts)
        if node.value != value:
            tree.set_value(node, value, tree.generation + 1)
        elif before == acl:
            continue
        fired.append((parts, None, before))
    return fired


def _still_valid(acl: Acl, domains: Domains, copy: Copy) -> Acl:
    def same(domid: int) -> bool:
        if domid not in copy.identities:
            return domid not in domains.known  # nobody then, nobody now; or (DOMID_ANY) nobody in particular
        domain = domains.known.get(domid)
        return domain is not None and domain.unique_id == copy.identities[domid]

    access, owner = acl[0]
    return (access, owner if same(owner) else PRIVILEGED), *(entry for entry in acl[1:] if same(entry[1]))
