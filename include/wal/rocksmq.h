/*
 * rocksmq.h - the WAL port on RocksMQ, read from the files of a running Milvus.
 *
 * What is flushed is read through a secondary RocksDB instance, what is not from RocksDB's write-ahead log
 * files; so no second copy of Milvus's write buffers (up to 128 MiB) is held in memory. Milvus notices nothing.
 *
 * One port per rocksmq.path, one helper thread (xthread) for all its readers. Each poll is one job: look for
 * log files, then read a bounded slice for every reader that is not paused. The loop decides when: at once
 * while data flows, then 2 ms after inotify tells that Milvus wrote to its log, and every second to be sure;
 * where inotify does not work, at 2 ms growing to 50 ms. Nothing is polled while no reader wants data, and
 * after 10 s of that all files are closed, as they hold the disk space of what Milvus deletes.
 *
 * on_batch   n = 0 with caught_up is possible: the end was reached, or the topic is empty or not there.
 * Memory     some 20 MiB with RocksDB's own; of it 4 MiB slices on their way and 4 MiB cache.
 * Errors     LOST (ERR_GONE): start position or last message was removed by retention. USER
 *            (ERR_UNSUPPORTED): the source is a Milvus 2.6 with its streaming service. RETRY for all else,
 *            told after it lasted one second.
 * Facts      shared/reference/source.md 7.4.   Thread  loop thread only.
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
