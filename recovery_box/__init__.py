"""What outlives a process that may die at any instruction.

A worker that talks to the outside world (here: XenStore-Logic) is forked from a keeper (XenStore-State).  Everything the
next worker needs to go on exactly where the last one fell lies in one shared file or in the keeper's hands:

- `box`      the file: versioned, locked, preallocated; its words are stored whole (`SharedWords`).
- `journal`  records of effects, one producer, one consumer; a record is there completely or not at all.
- `lanes`    input and output of each connection, like a pair of rings, with positions that even a `kill -9` inside the
             system call leaves decidable.
- `items`    typed things to remember (connections, watches, transactions, unsent output, settings), kept by the keeper.
- `ringlane` a lane whose other end is a shared page with indices instead of a socket.
- `custody`  handing descriptors to a running worker under equal numbers.
- `line`     questions and news between the two, beside the journal.
- `ledger`, `fdstore`  for a keeper that may die as well: what it knew, and descriptors in somebody else's keeping.

The package knows nothing of XenStore: neither messages nor paths nor domains, beyond the fields its items carry.

Three workers, one after another, are killed; what each had published counts, once:

    import os, signal, time
    from recovery_box.box import Box
    from recovery_box.journal import Consumer, Producer

    box = Box(PATH)                                             # on tmpfs; mapped by the keeper and by every worker
    consumer, total = Consumer(box), 0
    for _ in range(3):
        if not os.fork():
            producer = Producer(box, consumer.sequence, on_full=lambda: time.sleep(0.001))
            for number in range(1000):
                producer.append(number.to_bytes(8, "little"))   # there as a whole, or not at all
            os.kill(os.getpid(), signal.SIGKILL)
        os.wait()
        total += sum(int.from_bytes(body, "little") for body in consumer.records())
    print(total)                                                # 1498500

A worker that echoes is killed between taking a message and answering it; the next one answers it, and its peer sees nothing:

    import socket
    from recovery_box.lanes import Lane, prepare_slot

    peer, ours = socket.socketpair()
    prepare_slot(box, 0, owner=1)
    peer.send(b"hello")
    for dies in (True, False):
        if not os.fork():
            lane = Lane(box, 0, ours.fileno())                  # all it knows is read from the box
            lane.receive()
            if dies:
                os.kill(os.getpid(), signal.SIGKILL)
            lane.answer(lane.peek(5), lane.head + 5)            # one store: consumed, and answered
            lane.send()
            os._exit(0)
        os.wait()
    print(peer.recv(5))                                         # b'hello'
    box.unlink()
"""
