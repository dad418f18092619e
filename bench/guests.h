/*
 * guests.h: domains of a simulated Xen directory, and guests that talk to the daemon through their rings.
 *
 * For: load.c. The directory stands for the hypervisor: `domains/<N>` says that domain N exists, `dom<N>.ring` is its
 *   page, event channels are datagrams between `evtchn.sock` (the daemon) and `g<N>.<port>.sock` (the guest).
 * Guarantees: a guest keeps the ring's rules (bytes before the index, one store an index), notifies the daemon once a
 *   request, and waits for events, never in a busy loop. Anything unexpected ends the program, as in wire.h.
 * Does not model: masked or merged events, grants, frame numbers.
 */
#ifndef GUESTS_H
#define GUESTS_H

#include "wire.h"

#define GUEST_REPLY_LIMIT 5 /* seconds */

/* `fd` is readable when the daemon has sent an event; `payload` holds the last message, NUL-terminated. */
struct guest {
    int domid, fd;
    uint32_t port;
    struct ring *ring;
    uint32_t last_request, length;
    size_t filled;
    char payload[WIRE_PAYLOAD_MAX + 1], input[2 * WIRE_MESSAGE_MAX];
};

void xen_use(const char *directory);
void xen_create(int domid);  /* a domain with a page of zeros, which nobody has introduced */
void xen_shut_down(int domid); /* the domain has shut down, and the daemon is told that some domain has changed */
void xen_destroy(int domid);   /* the same of one that is gone */

struct request introduce_request(int domid);

/* A domain that exists from now on, with its end of the ring; `guest_new` introduces it, too. `guest_dom0` exists anyway. */
struct guest *guest_create(int domid);
struct guest *guest_new(struct wire *toolstack, int domid);
struct guest *guest_dom0(void);
void guest_forget(struct guest *guest); /* this end of the ring; the domain is not touched */

void guest_send(struct guest *guest, uint32_t transaction, const struct request *request);
void guest_wait(struct guest *guest);                /* takes one event */
void guest_take_events(struct guest *guest);         /* all that have come */
int guest_message(struct guest *guest, struct wire_header *header); /* takes the next message, if it is there whole */
int guest_reply(struct guest *guest, uint32_t type); /* takes the reply out of the ring, if it is there as a whole */
void guest_call(struct guest *guest, uint32_t transaction, const struct request *request);
void guest_pipeline(struct guest *guest, const struct request *request, int depth); /* the ring must hold them all */
void guest_receive_event(struct guest *guest); /* the next message, which is one of a watch */
void guest_watch(struct guest *guest, const struct request *request); /* until its first event */

#endif
