"""Compares collections of two Milvus: schema, partitions, indexes, load state, count(*), rows by primary key.

A standby answers strong reads only when ticks reach it; each call has a timeout, and a refusal is a difference.
"""
import logging
import time
from concurrent.futures import ThreadPoolExecutor

import grpc
from pymilvus import Collection, DataType, connections, db, utility
from pymilvus.exceptions import MilvusException

from servers import wait_for

logging.getLogger("pymilvus").setLevel(logging.CRITICAL)  # errors come as exceptions too
PAGE = 4096
# pymilvus wraps most errors, but not a call that ran out of its time
CALL_ERRORS = (MilvusException, grpc.RpcError)


class Side:
    """A Milvus as pymilvus sees it: one connection for each database."""

    def __init__(self, name, address, timeout=20, portable=False):
        """portable: a target in that mode; keys that the source generates are plain ones there."""
        self.name, self.address, self.timeout, self.portable = name, address, timeout, portable

    def alias(self, database="default"):
        alias = f"{self.address}/{database}"
        if not connections.has_connection(alias):
            host, port = self.address.split(":")
            connections.connect(alias, host=host, port=port, db_name=database, timeout=self.timeout)
        return alias

    def handler(self, database="default"):
        return connections._fetch_handler(self.alias(database))

    def collection(self, name, database="default"):
        return Collection(name, using=self.alias(database))

    def collections(self, database="default"):
        return sorted(utility.list_collections(using=self.alias(database), timeout=self.timeout))

    def databases(self):
        return sorted(db.list_database(using=self.alias(), timeout=self.timeout))

    def has(self, name, database="default"):
        return utility.has_collection(name, using=self.alias(database), timeout=self.timeout)

    def describe(self, name, database="default"):
        """What must be equal on both sides; ids, channels and times of creation are not."""
        d = self.handler(database).describe_collection(name, timeout=self.timeout)
        fields = []
        for f in d["fields"]:
            f = {k: v for k, v in f.items() if k not in ("field_id", "indexes")}
            f["params"] = {k: str(v) for k, v in (f.get("params") or {}).items()}
            f["type"] = DataType(f["type"]).name
            fields.append(f)
        keep = ("description", "num_shards", "consistency_level", "enable_dynamic_field", "num_partitions",
                "auto_id", "properties", "aliases")
        out = {k: d[k] for k in keep if k in d}
        out["aliases"] = sorted(d.get("aliases", []))
        out["fields"] = fields
        return out

    def comparable(self, described):
        """Of a description (of either side), what this side as a target must have too."""
        return without_auto_id(described) if self.portable else described

    def comparable_indexes(self, indexes):
        return indexes

    def partitions(self, name, database="default"):
        return sorted(self.handler(database).list_partitions(name, timeout=self.timeout))

    def indexes(self, name, database="default"):
        c = self.collection(name, database)
        return sorted((i.field_name, i.index_name, tuple(sorted((k, str(v)) for k, v in flatten(i.params).items())))
                      for i in c.indexes)

    def loaded(self, name, database="default"):
        return str(utility.load_state(name, using=self.alias(database), timeout=self.timeout))

    def loaded_partitions(self, name, database="default"):
        return [p for p in self.partitions(name, database)
                if str(utility.load_state(name, partition_names=[p], using=self.alias(database),
                                          timeout=self.timeout)) != "NotLoad"]

    def count(self, name, database="default", partition=None):
        rows = self.collection(name, database).query(
            "", output_fields=["count(*)"], consistency_level="Strong", timeout=self.timeout,
            partition_names=[partition] if partition else None)
        return rows[0]["count(*)"]

    def rows(self, name, database="default", fields=("*",), partition=None, progress=None):
        """{key: row} of all rows, read in pages by rising key; equal keys in one partition collapse."""
        c = self.collection(name, database)
        pk = c.schema.primary_field
        text = pk.dtype == DataType.VARCHAR
        out, expr = {}, f'{pk.name} >= ""' if text else f"{pk.name} >= {-2**63 + 1}"
        while True:
            page = c.query(expr, output_fields=list(fields), limit=PAGE, consistency_level="Strong",
                           timeout=self.timeout, partition_names=[partition] if partition else None)
            for row in page:
                out[row[pk.name]] = plain(row)
            if progress:
                progress(len(out))
            if len(page) < PAGE:
                return out
            last = max(row[pk.name] for row in page)
            expr = f"{pk.name} > {quote(last) if text else last}"

    def sync(self, database="default"):
        """Forgets the connections, as after a restart of the server on another address."""
        for alias, _ in connections.list_connections():
            if alias.startswith(self.address + "/"):
                connections.remove_connection(alias)


def quote(text):
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def flatten(params):
    out = {}
    for k, v in params.items():
        out.update(flatten(v) if isinstance(v, dict) else {k: v})
    return out


def plain(value):
    """Values of an answer that compare with ==."""
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)) or type(value).__name__ == "RepeatedScalarContainer":
        return [plain(v) for v in value]
    if type(value).__module__ == "numpy":
        return value.tolist()
    if hasattr(value, "DESCRIPTOR"):
        return str(value)
    return value


def short(value, limit=120):
    text = repr(value)
    return text if len(text) <= limit else text[:limit] + "..."


def diff_value(what, a, b, out):
    if a != b:
        out.append(f"{what}: source {short(a)}, target {short(b)}")


def diff_schema(name, a, b, out):
    for key in sorted(set(a) | set(b)):
        if key != "fields":
            diff_value(f"{name}: {key}", a.get(key), b.get(key), out)
    fa, fb = a["fields"], b["fields"]
    diff_value(f"{name}: field order", [f["name"] for f in fa], [f["name"] for f in fb], out)
    for x, y in zip(fa, fb):
        diff_value(f"{name}: field {x['name']}", x, y, out)


def without_auto_id(described):
    fields = [{k: v for k, v in f.items() if k != "auto_id"} for f in described["fields"]]
    return {**described, "auto_id": None, "fields": fields}


def diff_rows(name, a, b, out):
    missing, extra = sorted(set(a) - set(b)), sorted(set(b) - set(a))
    other = sorted(k for k in set(a) & set(b) if a[k] != b[k])
    if missing:
        out.append(f"{name}: {len(missing)} rows are missing on the target: {short(missing)}")
    if extra:
        out.append(f"{name}: {len(extra)} rows are only on the target: {short(extra)}")
    if other:
        k = other[0]
        fields = [f for f in a[k] if a[k].get(f) != b[k].get(f)]
        out.append(f"{name}: {len(other)} rows differ, e.g. {k!r} in {fields}: "
                   f"source {short({f: a[k].get(f) for f in fields})}, "
                   f"target {short({f: b[k].get(f) for f in fields})}")


def compare_data(source, target, name, database, out):
    """Partition by partition, since a key is unique in its partition only (with a partition key: in all)."""
    keyed = any(f.is_partition_key for f in source.collection(name, database).schema.fields)
    partitions = source.partitions(name, database)
    for p in [None] if keyed or len(partitions) == 1 else partitions:
        label = f"{database}.{name}" + (f"/{p}" if p else "")
        a, b = (s.rows(name, database, partition=p) for s in (source, target))
        diff_rows(label, a, b, out)
        ca, cb = (s.count(name, database, p) for s in (source, target))
        diff_value(f"{label}: count(*)", ca, cb, out)
        if cb - len(b) > ca - len(a):  # a source whose Milvus was killed may have written a message twice itself
            out.append(f"{label}: target has {cb} rows by count(*) but {len(b)} keys")


def compare_collection(source, target, name, database="default", data=True):
    """The differences as lines of text, [] when equal."""
    full, out = f"{database}.{name}", []
    here, there = source.has(name, database), target.has(name, database)
    if here != there:
        return [f"{full}: exists on the {'source' if here else 'target'} only"]
    if not here:
        return []
    diff_schema(full, *(target.comparable(s.describe(name, database)) for s in (source, target)), out)
    diff_value(f"{full}: partitions", source.partitions(name, database), target.partitions(name, database), out)
    diff_value(f"{full}: indexes", *(target.comparable_indexes(s.indexes(name, database)) for s in (source, target)), out)
    state = source.loaded(name, database)
    diff_value(f"{full}: load state", state, target.loaded(name, database), out)
    if not out and data and state == "Loaded":
        compare_data(source, target, name, database, out)
    return out


def compare(source, target, collections, database="default", data=True):
    """A strong read waits for the next tick: several collections at a time."""
    def one(name):
        try:
            return compare_collection(source, target, name, database, data)
        except CALL_ERRORS as e:
            return [f"{database}.{name}: cannot be compared: {short(str(e), 300)}"]
    source.alias(database), target.alias(database)
    with ThreadPoolExecutor(4) as pool:
        return [line for lines in pool.map(one, collections) for line in lines]


def wait_equal(source, target, collections, database="default", timeout=120, data=True):
    """
    Compares until equal; the last differences are the text of the AssertionError.

    Milvus 2.3.5 under load can lose sight of rows when a collection is released and loaded again (seen on either side, with
    every row in its log, in order): so what still differs after half of the time is loaded once more, and told.
    """
    def equal():
        diffs = compare(source, target, collections, database, data)
        assert not diffs, "\n  ".join(["the sides differ:"] + diffs)
        return True
    try:
        return wait_for("both sides equal", equal, timeout / 2, 0.5) and time.time()
    except TimeoutError as e:
        print(f"{e}\nnow both sides load again what differs")
    for name in collections:
        if source.loaded(name, database) == "Loaded" and compare(source, target, [name], database, data):
            load_again(source, name, database)
            load_again(target, name, database)
    try:
        return wait_for("both sides equal", equal, timeout / 2, 0.5) and time.time()
    except TimeoutError as e:
        raise AssertionError(f"{e}\n(both sides have loaded again what differed)") from None


def load_again(side, name, database):
    """A target may do so at the same time, after its source."""
    try:
        side.handler(database).release_collection(name, timeout=60)
        side.collection(name, database).load(timeout=60)
    except CALL_ERRORS as e:
        print(f"{database}.{name} cannot be loaded again: {short(str(e), 300)}")
