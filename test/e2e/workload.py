"""Seven collections of different schemas, and a random workload on them (a seed gives the same operations)."""
import random
import string
import threading

from pymilvus import Collection, CollectionSchema, DataType as T, FieldSchema as F, utility

from compare import CALL_ERRORS, quote
from servers import wait_for

DIM = 8
FLOAT_INDEXES = [
    {"index_type": "FLAT", "metric_type": "L2", "params": {}},
    {"index_type": "IVF_FLAT", "metric_type": "L2", "params": {"nlist": 16}},
    {"index_type": "HNSW", "metric_type": "IP", "params": {"M": 8, "efConstruction": 32}},
]
BINARY_INDEXES = [
    {"index_type": "BIN_FLAT", "metric_type": "HAMMING", "params": {}},
    {"index_type": "BIN_IVF_FLAT", "metric_type": "HAMMING", "params": {"nlist": 16}},
]


def vec(rnd):
    return [round(rnd.uniform(-1, 1), 4) for _ in range(DIM)]


def text(rnd, limit=12):
    return "".join(rnd.choice(string.ascii_letters + '"\\ äß€') for _ in range(rnd.randrange(limit)))


def vector():
    return F("v", T.FLOAT_VECTOR, dim=DIM)


def int_key(**kw):
    return F("id", T.INT64, is_primary=True, **kw)


def row_base(rnd, key):
    return {"id": key, "v": vec(rnd)}


def row_dynamic(rnd, key):
    return {**row_base(rnd, key), "n": rnd.randrange(100), "more": {"x": [rnd.random(), text(rnd)]}}


def row_auto(rnd, key):
    return {"t": text(rnd), "b": rnd.randbytes(2)}


def row_group(rnd, key):
    return {**row_base(rnd, key), "g": "group%d" % rnd.randrange(10)}


def row_scalars(rnd, key):
    return {**row_base(rnd, key), "b": rnd.random() < 0.5, "i8": rnd.randrange(-128, 128),
            "i16": rnd.randrange(-2**15, 2**15), "i32": rnd.randrange(-2**31, 2**31),
            "i64": rnd.randrange(-2**62, 2**62), "f": float(rnd.randrange(1000)) / 8, "d": rnd.uniform(-1e9, 1e9),
            "s": text(rnd)}


def row_json(rnd, key):
    return {**row_base(rnd, key), "j": rnd.choice([{}, {"a": key}, {"b": [1, text(rnd), None], "c": {"d": 1.5}}])}


def row_arrays(rnd, key):
    return {**row_base(rnd, key), "ai": [rnd.randrange(99) for _ in range(rnd.randrange(6))],
            "s": [text(rnd) for _ in range(rnd.randrange(4))], "ab": [rnd.random() < 0.5] * rnd.randrange(3)}


class Shape:
    """A schema, how a row of it is made, and what the workload may do with it."""

    def __init__(self, fields, row, text_key=False, auto=False, binary=False, partitions=True, dynamic=False, **create):
        self.fields, self.row, self.text_key, self.auto = fields, row, text_key, auto
        self.vector_field = "b" if binary else "v"
        self.indexes = BINARY_INDEXES if binary else FLOAT_INDEXES
        self.partitions, self.dynamic, self.create_args = partitions, dynamic, create

    def create(self, name, using):
        schema = CollectionSchema(self.fields(), enable_dynamic_field=self.dynamic)
        return Collection(name, schema, using=using, **self.create_args)

    def key(self, number):
        return f'k"{number:06d}' if self.text_key else number


SHAPES = {
    "int_key": Shape(lambda: [int_key(), vector()], row_base, shards_num=2),
    "text_key": Shape(lambda: [F("id", T.VARCHAR, is_primary=True, max_length=64), vector()], row_dynamic,
                      text_key=True, dynamic=True, shards_num=2),
    "auto_key": Shape(lambda: [int_key(auto_id=True), F("t", T.VARCHAR, max_length=64),
                               F("b", T.BINARY_VECTOR, dim=16)], row_auto, auto=True, binary=True, shards_num=1),
    "part_key": Shape(lambda: [int_key(), F("g", T.VARCHAR, max_length=20, is_partition_key=True), vector()],
                      row_group, partitions=False, num_partitions=3, shards_num=1),
    "scalars": Shape(lambda: [int_key(), F("b", T.BOOL), F("i8", T.INT8), F("i16", T.INT16), F("i32", T.INT32),
                              F("i64", T.INT64), F("f", T.FLOAT), F("d", T.DOUBLE), F("s", T.VARCHAR, max_length=64),
                              vector()], row_scalars, shards_num=1),
    "json": Shape(lambda: [int_key(), F("j", T.JSON), vector()], row_json, shards_num=1, consistency_level="Strong"),
    "arrays": Shape(lambda: [int_key(), F("ai", T.ARRAY, element_type=T.INT32, max_capacity=8),
                             F("s", T.ARRAY, element_type=T.VARCHAR, max_length=64, max_capacity=8),
                             F("ab", T.ARRAY, element_type=T.BOOL, max_capacity=4), vector()],
                    row_arrays, shards_num=2),
}


class Table:
    """One collection under the workload."""

    def __init__(self, name, shape, using, rnd, loaded=True):
        self.name, self.shape, self.using, self.rnd, self.loaded = name, shape, using, rnd, loaded
        self.next_key = 0
        self.make()

    def make(self):
        self.collection = self.shape.create(self.name, self.using)
        self.partitions = ["_default"]
        self.keys = set()
        if self.loaded:
            self.show()

    def show(self):
        """Index and load, without which nothing can be queried."""
        self.index()
        wait_for(f"the source loads {self.name}", self.load, 120, 1)

    def load(self):
        """False while the source cannot: just after its restart it has no query node yet."""
        try:
            self.collection.load(timeout=60)
            return True
        except CALL_ERRORS:
            return False

    def drop(self):
        self.collection.drop(timeout=60)

    def index(self):
        self.collection.create_index(self.shape.vector_field, self.rnd.choice(self.shape.indexes),
                                     index_name="ix_" + self.shape.vector_field)

    def partition(self):
        return self.rnd.choice(self.partitions) if self.shape.partitions else None

    def put(self, n, partition=None):
        """Inserts n new rows in one request; returns their keys."""
        keys = [self.shape.key(i) for i in range(self.next_key, self.next_key + n)]
        self.next_key += n
        answer = self.collection.insert([self.shape.row(self.rnd, k) for k in keys], partition_name=partition,
                                        timeout=60)
        keys = list(answer.primary_keys) if self.shape.auto else keys
        self.keys.update(keys)
        return keys

    def change(self, keys, partition=None):
        self.collection.upsert([self.shape.row(self.rnd, k) for k in keys], partition_name=partition, timeout=60)

    def remove(self, keys, partition=None):
        listed = (quote(k) if self.shape.text_key else str(k) for k in keys)
        self.collection.delete(f"id in [{', '.join(listed)}]", partition_name=partition, timeout=60)
        self.keys.difference_update(keys)

    def insert(self):
        self.put(self.rnd.choice([1, 5, 40, 200]), self.partition())

    def some_keys(self, limit):
        return self.rnd.sample(sorted(self.keys), min(len(self.keys), self.rnd.randrange(1, limit)))

    def upsert(self):
        if self.shape.auto or not self.keys:
            return self.insert()
        self.change(self.some_keys(20), self.partition())

    def delete(self):
        if self.keys:
            self.remove(self.some_keys(30))

    def create_partition(self):
        if self.shape.partitions and len(self.partitions) < 5:
            name = "p%d" % self.rnd.randrange(8)
            if name not in self.partitions:
                self.collection.create_partition(name)
                self.partitions.append(name)
                self.insert()

    def drop_partition(self):
        if self.shape.partitions and len(self.partitions) > 1:
            name = self.partitions.pop(self.rnd.randrange(1, len(self.partitions)))
            self.collection.release()  # 2.3.5 drops no loaded partition
            self.collection.drop_partition(name)
            self.collection.load(timeout=60)

    def recreate(self):
        self.drop()
        self.make()
        self.insert()

    def reindex(self):
        self.collection.release()
        self.collection.drop_index(index_name="ix_" + self.shape.vector_field)
        self.index()
        self.collection.load(timeout=60)

    def restore(self):
        """Back to an indexed and loaded collection, whatever operation failed half way."""
        if not utility.has_collection(self.name, using=self.using):
            self.make()
        if not self.collection.indexes:
            self.index()
        self.collection.load(timeout=60)
        self.insert()

    def flush(self):
        self.collection.flush(timeout=60)


OPERATIONS = (["insert"] * 40 + ["upsert"] * 15 + ["delete"] * 15 + ["create_partition"] * 4 + ["drop_partition"] * 2
              + ["recreate", "reindex", "flush"])


class Workload:
    """All shapes at once, one thread each. What the source refuses is counted and told, not hidden."""

    def __init__(self, using, prefix, seed, shapes=SHAPES, table=Table):
        self.tables = [table(f"{prefix}_{name}", shape, using, random.Random(f"{seed}/{name}"))
                       for name, shape in shapes.items()]
        self.stopping = threading.Event()
        self.threads = []
        self.done, self.errors = 0, []

    @property
    def names(self):
        return [t.name for t in self.tables]

    def _work(self, table):
        while not self.stopping.is_set():
            operation = table.rnd.choice(OPERATIONS)
            try:
                getattr(table, operation)()
                self.done += 1
            except CALL_ERRORS as e:
                self.errors.append(f"{table.name}.{operation}: {e}")
                self.stopping.wait(0.5)

    def start(self):
        self.threads = [threading.Thread(target=self._work, args=(t,), daemon=True) for t in self.tables]
        for t in self.threads:
            t.start()
        return self

    def stop(self, timeout=180):
        """Ends with every collection loaded, so that all can be compared."""
        self.stopping.set()
        for t in self.threads:
            t.join(timeout)
            assert not t.is_alive(), "the workload hangs"
        for t in self.tables:
            t.restore()

    def drop(self):
        for t in self.tables:
            if utility.has_collection(t.name, using=t.using):
                t.drop()
