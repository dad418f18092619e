/* Included before everything that mypyc makes of the typed modules (setup.py).
 *
 * mypyc 2.4 has the deallocator of every class use CPython's trashcan, which bounds recursion by putting objects aside, linked through
 * the header that the garbage collector keeps in front of each.  A class without that header (`acyclic`, as `tree.Node` is) has
 * something else's memory there: a guest that removed a path of some fifty names overwrote it.  Nothing here needs the trashcan: the only
 * long chains are nodes linked by dicts, and dicts have it.
 */
#ifndef XOARSTORE_ACYCLIC_H
#define XOARSTORE_ACYCLIC_H

#define PY_SSIZE_T_CLEAN
#include <CPy.h>

#undef CPy_TRASHCAN_BEGIN
#undef CPy_TRASHCAN_END
#define CPy_TRASHCAN_BEGIN(op, dealloc) {
#define CPy_TRASHCAN_END(op) }

#endif
