"""A program: nodes linked a long way down are dropped, and nothing that lies between them in memory is harmed.

Fails with an exception, or ends by a signal.
"""

from xenstore_state.tree import Parts, Tree

LEVELS = 400
ACL = ((0, 0),)


def drop() -> None:
    """Makes a path and as many nodes beside it, in turn; drops the path, and looks at the others."""
    tree = Tree(ACL)
    kept = []
    node = tree.root
    parts: Parts = ()
    others = tree.add_child(tree.root, b"", ACL, 1, (b"kept",))
    for level in range(LEVELS):
        parts = (*parts, b"a")
        node = tree.add_child(node, b"v", ACL, level, parts)
        kept.append(tree.add_child(others, b"%d" % level, ACL, level, (b"kept", b"%d" % level)))
    del node
    tree.remove_child(tree.root, LEVELS, (b"a",))
    for level, node in enumerate(kept):
        found = tree.find((b"kept", b"%d" % level))
        assert found is node
        assert (node.value, node.acl, node.birth, node.children) == (b"%d" % level, ACL, level, None)
        tree.add_child(node, b"", ACL, LEVELS + level, (b"kept", b"%d" % level, b"below"))
    assert tree.size == 2 + 2 * LEVELS


if __name__ == "__main__":
    for _ in range(20):
        drop()
