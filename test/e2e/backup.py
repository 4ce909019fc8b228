"""
A backup of a collection and its restore, by the calls that milvus-backup makes: flush, the positions of the channels, the
flushed files of each segment, and a bulk import of them.

The flush of 2.3.5 answers without positions (newer ones have channel_cps): they are read from the source's etcd behind it.
"""
import base64
import json
import shutil
import urllib.request

from pymilvus import utility
from pymilvus.grpc_gen import common_pb2, milvus_pb2, msg_pb2
from servers import wait_for

LOGS = ("insert_log", "delta_log")


class Backup:
    def __init__(self, source, side, folder):
        """source: the server, side: its API."""
        self.source, self.side, self.folder = source, side, folder
        self.meta, self.segments = [], {}

    def _etcd(self, prefix):
        key = f"{self.source.root_path}/meta/datacoord-meta/{prefix}".encode()
        body = {"key": base64.b64encode(key).decode(), "range_end": base64.b64encode(key + b"\xff").decode()}
        request = urllib.request.Request(f"http://{self.source.etcd}/v3/kv/range", data=json.dumps(body).encode())
        with urllib.request.urlopen(request, timeout=10) as r:
            found = json.load(r).get("kvs", [])
        return {base64.b64decode(kv["key"]).decode(): base64.b64decode(kv.get("value", "")) for kv in found}

    def _positions(self, name, database, since_ms):
        """Of the collection's channels, as they are now; None: not all have passed that time."""
        described = self.side.handler(database).describe_collection(name)
        cid = described["collection_id"]
        found = {k.rsplit("/", 1)[1]: v for k, v in self._etcd("channel-cp/").items() if f"_{cid}v" in k}
        times = [msg_pb2.MsgPosition.FromString(v).timestamp >> 18 for v in found.values()]
        return found if len(found) == described["num_shards"] and min(times) >= since_ms else None

    def take(self, name, database="default"):
        """Nobody writes: what the positions cover is in the segments that the flush names, and no more."""
        api = self.side.handler(database)
        cid = api.describe_collection(name)["collection_id"]
        answer = api._stub.Flush(milvus_pb2.FlushRequest(db_name=database, collection_names=[name]), timeout=60)
        assert not answer.status.error_code, answer.status
        segments = list(answer.coll_segIDs[name].data) + list(answer.flush_coll_segIDs[name].data)
        state = milvus_pb2.GetFlushStateRequest(segmentIDs=segments)
        wait_for("the flush", lambda: api._stub.GetFlushState(state, timeout=20).flushed, 120, 0.5)
        flushed_ms = answer.coll_flush_ts[name] >> 18
        positions = wait_for("the positions of the flush", lambda: self._positions(name, database, flushed_ms), 120, 0.5)
        self.meta.append({"collection_id": cid, "db_name": database, "collection_name": name,
                          "channel_checkpoints": {c: base64.b64encode(p).decode() for c, p in positions.items()}})
        for key in self._etcd(f"s/{cid}/"):
            partition, segment = key.split("/")[-2:]
            if int(segment) in segments:
                self._copy(cid, partition, segment)
                self.segments[segment] = (name, database)

    def _copy(self, collection_id, partition, segment):
        for log in LOGS:
            path = self.source.data / "data" / log / str(collection_id) / partition / segment
            if path.exists():
                shutil.copytree(path, self.folder / log / segment)

    def collection_meta(self):
        """As in meta/collection_meta.json of a backup."""
        return {"infos": self.meta}

    def restore(self, target, side):
        """The collections exist there, with one partition."""
        for segment, (name, database) in self.segments.items():
            files = ["", ""]  # without Deletes the second one stays empty
            for i, log in enumerate(LOGS):
                path = target.data / "data" / "restore" / log / segment
                if (self.folder / log / segment).exists():
                    shutil.copytree(self.folder / log / segment, path)
                    files[i] = f"{path}/"
            request = milvus_pb2.ImportRequest(
                db_name=database, collection_name=name, partition_name="_default", files=files,
                options=[common_pb2.KeyValuePair(key="backup", value="true")])
            answer = side.handler(database)._stub.Import(request, timeout=60)
            assert not answer.status.error_code, answer.status
            wait_for(f"the import of segment {segment}", lambda: imported(side, database, answer.tasks[0]), 120, 0.5)


def imported(side, database, task):
    state = utility.get_bulk_insert_state(task, using=side.alias(database))
    assert state.state_name not in ("Failed", "Failed and cleaned"), state
    return state.state_name == "Completed"
