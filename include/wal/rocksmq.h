/*
 * rocksmq.h - the WAL port on RocksMQ: a secondary RocksDB instance on the files of a running Milvus.
 *
 * One port per rocksmq.path, one helper thread (xthread) for all its readers. Each poll is one job: catch up
 * with the primary, then read a bounded slice for every reader that is not paused. The loop decides when:
 * at once while data flows, growing to at most 50 ms when idle.
 * Facts: shared/reference/source.md 7.4.
 */
#ifndef WAL_ROCKSMQ_H
#define WAL_ROCKSMQ_H
struct err;
struct loop;
struct wal_port;

/* path: rocksmq.path of the source Milvus (the directory with CURRENT). It is opened by the first use; a path
 * that is not there yet is trouble (RETRY) of the readers. secondary_dir: writable folder for the info log. */
struct wal_port *rocksmq_open(struct loop *l, const char *path, const char *secondary_dir);
/* All readers must be closed. */
void rocksmq_close(struct wal_port *w);
#endif
