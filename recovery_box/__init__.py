"""What outlives a process that may die at any instruction.

A worker that talks to the outside world (here: XenStore-Logic) is forked from a keeper (XenStore-State).  Everything the
next worker needs to go on exactly where the last one fell lies in one shared file or in the keeper's hands:

- `box`      the file: versioned, locked, preallocated; its words are stored whole (`SharedWords`).
- `journal`  records of effects, one producer, one consumer; a record is there completely or not at all.
- `lanes`    input and output of each connection, like a pair of rings, with positions that even a `kill -9` inside the
             system call leaves decidable.
- `items`    typed things to remember (connections, watches, transactions, unsent output, settings), kept by the keeper.
- `custody`  handing descriptors to a running worker under equal numbers.

The package knows nothing of XenStore: neither messages nor paths nor domains, beyond the fields its items carry.
"""
