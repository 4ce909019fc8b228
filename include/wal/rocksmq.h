/*
 * rocksmq.h - the WAL port on RocksMQ: a secondary RocksDB instance on the files of a running Milvus.
 *
 * One port per rocksmq.path, one helper thread (xthread) for all its readers. Each poll is one job: catch up
 * with the primary, then read a bounded slice for every reader that is not paused. The loop decides when:
 * at once while data flows, then when inotify tells that Milvus wrote to its log, and every second to be sure;
 * where inotify does not work, at 2 ms growing to 50 ms. Nothing is polled while no reader wants data.
 *
 * Memory: up to 8 MiB cache, 4 MiB of slices on their way, and a copy of what Milvus has not yet flushed
 * (at most its two write buffers of 64 MiB).
 * Readers: on_batch comes with n = 0 once when the topic is empty or not there (caught_up).
 * Errors: LOST (ERR_GONE) start position or last message removed by retention; USER (ERR_UNSUPPORTED) the
 * source is a Milvus 2.6 with its streaming service; RETRY for all else, told after it lasted one second.
 * Facts: shared/reference/source.md 7.4.   Thread  loop thread only.
 */
#ifndef WAL_ROCKSMQ_H
#define WAL_ROCKSMQ_H
struct err;
struct loop;
struct wal_port;

/* path: rocksmq.path of the source Milvus (the directory with CURRENT). It is opened by the first use; a path
 * that is not there yet is trouble (RETRY) of the readers. secondary_dir: writable folder for the info log;
 * one port each. Strings are copied. Never NULL. */
struct wal_port *rocksmq_open(struct loop *l, const char *path, const char *secondary_dir);
/* All readers must be closed; callbacks of end() do not come any more. Waits for a running poll (some ms).
 * NULL is allowed. */
void rocksmq_close(struct wal_port *w);
#endif
