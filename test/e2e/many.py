"""Many collections of a source, written into its etcd as Milvus 2.3.5 writes them, which real creates would take
minutes for. The source's own Milvus does not know them: it only ticks on the channels."""
import base64
import json
import urllib.request

FLOAT_VECTOR, INT64 = 101, 5
FIRST_ID = 440_000_000_000_000_000
FIELDS = [(0, "RowID", INT64), (1, "Timestamp", INT64), (100, "id", INT64), (101, "v", FLOAT_VECTOR)]


def varint(v):
    out = bytearray()
    while v > 127:
        out.append(v & 127 | 128)
        v >>= 7
    return bytes(out) + bytes([v])


def message(*fields):
    """Protobuf: (number, int, str or bytes) each; 0 and "" are left out as Go does."""
    out = b""
    for no, value in fields:
        if isinstance(value, str):
            value = value.encode()
        if isinstance(value, int) and value:
            out += varint(no << 3) + varint(value)
        elif isinstance(value, bytes) and value:
            out += varint(no << 3 | 2) + varint(len(value)) + value
    return out


def field_schema(field_id, name, data_type):
    params = message((1, "dim"), (2, "8"))
    return message((1, field_id), (2, name), (3, int(field_id == 100)), (5, data_type),
                   (6, params if data_type == FLOAT_VECTOR else b""))


class Many:
    """Collections number 0, 1, ... with one shard each, on the channels in turn."""

    def __init__(self, milvus, channels):
        self.url = f"http://{milvus.etcd}/v3/kv/txn"
        self.prefix = f"{milvus.root_path}/meta/root-coord/"
        self.cluster, self.channels = milvus.cluster, channels
        self.n = 0

    def name(self, i):
        return f"many_{i:05}"

    def pchannel(self, i):
        return f"{self.cluster}-rootcoord-dml_{i % self.channels}"

    def keys(self, i):
        cid, pid = FIRST_ID + 10 * i, FIRST_ID + 10 * i + 1
        tt = 1_700_000_000_000 << 18
        start = message((1, self.pchannel(i)), (2, (1).to_bytes(8, "little")))
        info = message((1, cid), (2, message((1, self.name(i)))), (3, tt), (7, f"{self.pchannel(i)}_{cid}v0"),
                       (8, self.pchannel(i)), (10, 1), (11, start), (12, 2), (15, 1))
        yield f"database/collection-info/1/{cid}", info
        yield f"partitions/{cid}/{pid}", message((1, pid), (2, "_default"), (3, tt), (4, cid))
        for f in FIELDS:
            yield f"fields/{cid}/{f[0]}", field_schema(*f)

    def _txn(self, puts):
        ops = [{"requestPut": {"key": base64.b64encode((self.prefix + k).encode()).decode(),
                               "value": base64.b64encode(v).decode()}} for k, v in puts]
        body = json.dumps({"success": ops}).encode()
        with urllib.request.urlopen(urllib.request.Request(self.url, data=body), timeout=10) as r:
            assert json.load(r).get("succeeded"), "the transaction was refused"

    def grow(self, n):
        """Until there are n: 20 collections a transaction, its limit is 128 operations."""
        while self.n < n:
            until = min(n, self.n + 20)
            self._txn([kv for i in range(self.n, until) for kv in self.keys(i)])
            self.n = until
