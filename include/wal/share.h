/*
 * share.h - a WAL port over another one: readers of one topic that are at the same place share one reader of it.
 *
 * A feed is one inner reader with the clients it serves. A client that pauses while others go on finds what it missed
 * in the feed's window; when that is more than window_bytes the client leaves, and what it missed is read again by
 * a feed of its own when it resumes. So a slow client costs memory up to that bound and never holds up another. A feed
 * that catches up with another one is merged into it. With a single client batches pass straight through.
 *
 * open()     joins a feed that still has the start message in its window (some small messages, i.e. ticks, are always
 *            kept for that), or that starts at the same place and has delivered nothing; else it makes a feed.
 * Trouble    RETRY is told to each client of the feed once, also to those that come later, and its end. LOST, USER and
 *            DATA are told to each client behind the messages that came before.
 * Memory     window_bytes for a topic whose readers are apart, eight times that for all such topics; 1 KiB for others.
 * Thread     loop thread only.
 */
#ifndef WAL_SHARE_H
#define WAL_SHARE_H
#include <stddef.h>

struct loop;
struct wal_port;

/* inner is borrowed and must outlive the port. window_bytes: buffers held for one topic. Never NULL. */
struct wal_port *share_open(struct loop *l, struct wal_port *inner, size_t window_bytes);
/* All readers must be closed. Also from a callback. NULL is allowed. */
void share_close(struct wal_port *w);
#endif
