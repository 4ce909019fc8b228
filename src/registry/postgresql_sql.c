/*
 * The registry's schema in PostgreSQL, and its functions: what changes together is one statement.
 *
 * All times are the server's, so that the clocks of daemons do not matter. Positions, times and epochs are unsigned 64
 * bit numbers kept as the bit pattern of a signed one.
 *
 * Locks. A change of progress holds the lease's row FOR KEY SHARE until it is committed, which a renewal of the lease
 * does not disturb; whoever takes the lease locks it FOR UPDATE first. So a taker waits for the last change of its
 * predecessor, and every later one sees the new epoch and is refused.
 */
#include "registry/postgresql_priv.h"

#include "base/mem.h"

#include <stdlib.h>

/* migrations[i] leads from version i to i + 1.  What was released is never changed, only added to. */
static const char *const migrations[PGREG_SCHEMA] = {
    "CREATE TABLE lease ("
    " target_key text PRIMARY KEY,"
    " owner text NOT NULL," /* '': free */
    " epoch bigint NOT NULL,"
    " since timestamptz NOT NULL,"
    " until timestamptz NOT NULL);"
    "CREATE TABLE daemon (id text PRIMARY KEY, until timestamptz NOT NULL);"
    "CREATE TABLE task ("
    " id text PRIMARY KEY,"
    " spec_json text NOT NULL,"
    " target_key text NOT NULL,"
    " state smallint NOT NULL CHECK (state BETWEEN 0 AND 2),"
    " keep boolean NOT NULL,"
    " reason text NOT NULL,"
    " created_ms bigint NOT NULL,"
    " updated_ms bigint NOT NULL,"
    " nonce text NOT NULL);" /* of the create: a repeated one is not another's */
    "CREATE INDEX task_target ON task (target_key);"
    "CREATE TABLE checkpoint ("
    " task_id text NOT NULL REFERENCES task ON DELETE CASCADE,"
    " src_channel text NOT NULL,"
    " dst_channel text NOT NULL,"
    " start_major bigint NOT NULL, start_minor bigint NOT NULL, start_tt bigint NOT NULL,"
    " done_major bigint NOT NULL, done_minor bigint NOT NULL, done_tt bigint NOT NULL,"
    " sent_major bigint NOT NULL, sent_minor bigint NOT NULL, sent_tt bigint NOT NULL,"
    " retimed_tt bigint NOT NULL,"
    " op_major bigint NOT NULL, op_minor bigint NOT NULL, op_tt bigint NOT NULL,"
    " target_pos text,"
    " PRIMARY KEY (task_id, src_channel, dst_channel)) WITH (fillfactor = 50);"
    "CREATE TABLE collection ("
    " task_id text NOT NULL REFERENCES task ON DELETE CASCADE,"
    " collection_id bigint NOT NULL,"
    " json text NOT NULL,"
    " PRIMARY KEY (task_id, collection_id));"
    "CREATE TABLE target_tick ("
    " target text NOT NULL,"
    " dst_channel text NOT NULL,"
    " tt bigint NOT NULL,"
    " PRIMARY KEY (target, dst_channel)) WITH (fillfactor = 50);"
    "CREATE TABLE request ("
    " id bigserial PRIMARY KEY,"
    " nonce text NOT NULL UNIQUE,"
    " target_key text NOT NULL,"
    " body text NOT NULL,"
    " answer text,"
    " until timestamptz NOT NULL);"
    /* A server process that was stopped may carry out a group long after it was repeated on another connection. */
    "CREATE TABLE fence (session text PRIMARY KEY, seq bigint NOT NULL, used timestamptz NOT NULL);"
    "CREATE TABLE seal (one boolean PRIMARY KEY CHECK (one), proof text NOT NULL);"

    "CREATE FUNCTION wall_ms(t timestamptz) RETURNS bigint LANGUAGE sql AS"
    " $f$ SELECT floor(extract(epoch FROM t) * 1000)::bigint $f$;"
    "CREATE FUNCTION channel() RETURNS text LANGUAGE sql AS $f$ SELECT left('milvus_cdc_' || current_schema(), 63) $f$;"
    "CREATE FUNCTION tell(what text) RETURNS void LANGUAGE plpgsql AS"
    " $f$ BEGIN PERFORM pg_notify(channel(), left(what, 2000)); END $f$;"

    /* NULL: the lease is theirs. */
    "CREATE FUNCTION guard(p_key text, p_owner text, p_epoch bigint) RETURNS jsonb LANGUAGE plpgsql AS $f$"
    " DECLARE l lease;"
    " BEGIN"
    "  PERFORM 1 FROM lease WHERE target_key = p_key AND owner = p_owner AND epoch = p_epoch AND owner <> ''"
    "   FOR KEY SHARE;"
    "  IF FOUND THEN RETURN NULL; END IF;"
    "  SELECT * INTO l FROM lease WHERE target_key = p_key;"
    "  RETURN jsonb_build_object('e', 'stale', 'key', p_key, 'owner', coalesce(l.owner, ''),"
    "   'epoch', coalesce(l.epoch, 0));"
    " END $f$;"

    "CREATE FUNCTION change(p_task text, c jsonb) RETURNS void LANGUAGE plpgsql AS $f$"
    " BEGIN"
    "  CASE c->>0"
    "  WHEN 'ckpt' THEN"
    "   INSERT INTO checkpoint VALUES (p_task, c->>1, c->>2, (c->>3)::bigint, (c->>4)::bigint, (c->>5)::bigint,"
    "    (c->>6)::bigint, (c->>7)::bigint, (c->>8)::bigint, (c->>9)::bigint, (c->>10)::bigint, (c->>11)::bigint,"
    "    (c->>12)::bigint, (c->>13)::bigint, (c->>14)::bigint, (c->>15)::bigint, c->>16)"
    "   ON CONFLICT (task_id, src_channel, dst_channel) DO UPDATE SET"
    "    start_major = excluded.start_major, start_minor = excluded.start_minor, start_tt = excluded.start_tt,"
    "    done_major = excluded.done_major, done_minor = excluded.done_minor, done_tt = excluded.done_tt,"
    "    sent_major = excluded.sent_major, sent_minor = excluded.sent_minor, sent_tt = excluded.sent_tt,"
    "    retimed_tt = excluded.retimed_tt, op_major = excluded.op_major, op_minor = excluded.op_minor,"
    "    op_tt = excluded.op_tt, target_pos = excluded.target_pos;"
    "  WHEN 'del_ckpt' THEN"
    "   DELETE FROM checkpoint WHERE task_id = p_task AND src_channel = c->>1 AND dst_channel = c->>2;"
    "  WHEN 'coll' THEN"
    "   INSERT INTO collection VALUES (p_task, (c->>1)::bigint, c->>2)"
    "   ON CONFLICT (task_id, collection_id) DO UPDATE SET json = excluded.json;"
    "  WHEN 'del_coll' THEN"
    "   DELETE FROM collection WHERE task_id = p_task AND collection_id = (c->>1)::bigint;"
    "  WHEN 'tick' THEN" /* only upwards, compared as unsigned numbers: a negative pattern is the greater one */
    "   INSERT INTO target_tick AS t VALUES (c->>1, c->>2, (c->>3)::bigint)"
    "   ON CONFLICT (target, dst_channel) DO UPDATE SET tt = excluded.tt"
    "   WHERE CASE WHEN (t.tt < 0) = (excluded.tt < 0) THEN excluded.tt > t.tt ELSE excluded.tt < 0 END;"
    "  END CASE;"
    " END $f$;"

    "CREATE FUNCTION do_commit(p_task text, p_owner text, p_epoch bigint, p_changes jsonb) RETURNS jsonb"
    " LANGUAGE plpgsql AS $f$"
    " DECLARE v_key text; v_bad jsonb; c jsonb;"
    " BEGIN"
    "  SELECT target_key INTO v_key FROM task WHERE id = p_task;"
    "  IF NOT FOUND THEN RETURN '{\"e\":\"removed\"}'; END IF;"
    "  v_bad := guard(v_key, p_owner, p_epoch);"
    "  IF v_bad IS NOT NULL THEN RETURN v_bad; END IF;"
    "  FOR c IN SELECT x FROM jsonb_array_elements(p_changes) WITH ORDINALITY AS t(x, n) ORDER BY n LOOP"
    "   PERFORM change(p_task, c);"
    "  END LOOP;"
    "  RETURN NULL;"
    " END $f$;"

    "CREATE FUNCTION do_create(o jsonb) RETURNS jsonb LANGUAGE plpgsql AS $f$"
    " DECLARE v_bad jsonb := guard(o->>3, o->>10, (o->>11)::bigint); v_nonce text; v_now bigint;"
    " BEGIN"
    "  IF v_bad IS NOT NULL THEN RETURN v_bad; END IF;"
    "  v_now := wall_ms(clock_timestamp());"
    "  INSERT INTO task VALUES (o->>1, o->>2, o->>3, (o->>4)::smallint, (o->>5)::boolean, o->>6,"
    "   coalesce(nullif((o->>7)::bigint, 0), v_now), coalesce(nullif((o->>8)::bigint, 0), v_now), o->>9)"
    "   ON CONFLICT (id) DO NOTHING;"
    "  IF FOUND THEN PERFORM tell('t:' || (o->>1)); RETURN NULL; END IF;"
    "  SELECT nonce INTO v_nonce FROM task WHERE id = o->>1;"
    "  IF v_nonce = o->>9 THEN RETURN NULL; END IF;"
    "  RETURN '{\"e\":\"exists\"}';"
    " END $f$;"

    "CREATE FUNCTION guard_task(p_task text, p_owner text, p_epoch bigint) RETURNS jsonb LANGUAGE plpgsql AS $f$"
    " DECLARE v_key text;"
    " BEGIN"
    "  SELECT target_key INTO v_key FROM task WHERE id = p_task;"
    "  IF NOT FOUND THEN RETURN '{\"e\":\"absent\"}'; END IF;"
    "  RETURN guard(v_key, p_owner, p_epoch);"
    " END $f$;"

    "CREATE FUNCTION do_claim(p_key text, p_owner text, p_lease_ms bigint) RETURNS jsonb LANGUAGE plpgsql AS $f$"
    " DECLARE l lease; v_now timestamptz;"
    " BEGIN"
    "  INSERT INTO lease VALUES (p_key, '', 0, clock_timestamp(), '-infinity') ON CONFLICT (target_key) DO NOTHING;"
    "  SELECT * INTO l FROM lease WHERE target_key = p_key FOR UPDATE;"
    "  v_now := clock_timestamp();"
    "  IF l.owner <> '' AND l.owner <> p_owner AND l.until >= v_now THEN"
    "   RETURN jsonb_build_object('e', 'held', 'owner', l.owner);"
    "  END IF;"
    "  UPDATE lease SET owner = p_owner, epoch = epoch + 1, since = v_now,"
    "   until = v_now + p_lease_ms * interval '1 ms' WHERE target_key = p_key RETURNING * INTO l;"
    "  RETURN jsonb_build_object('epoch', l.epoch, 'since', wall_ms(l.since));"
    " END $f$;"

    "CREATE FUNCTION raise_epoch(p_key text, p_epoch bigint) RETURNS void LANGUAGE sql AS $f$"
    " INSERT INTO lease AS l VALUES (p_key, '', p_epoch, clock_timestamp(), '-infinity')"
    " ON CONFLICT (target_key) DO UPDATE SET epoch = greatest(l.epoch, excluded.epoch) $f$;"

    "CREATE FUNCTION apply_one(o jsonb) RETURNS jsonb LANGUAGE plpgsql AS $f$"
    " DECLARE v_bad jsonb;"
    " BEGIN"
    "  CASE o->>0"
    "  WHEN 'commit' THEN RETURN do_commit(o->>1, o->>2, (o->>3)::bigint, o->4);"
    "  WHEN 'create' THEN RETURN do_create(o);"
    "  WHEN 'claim' THEN RETURN do_claim(o->>1, o->>2, (o->>3)::bigint);"
    "  WHEN 'state' THEN"
    "   v_bad := guard_task(o->>1, o->>2, (o->>3)::bigint);"
    "   IF v_bad IS NOT NULL THEN RETURN v_bad; END IF;"
    "   UPDATE task SET state = (o->>4)::smallint, reason = o->>5, updated_ms = wall_ms(clock_timestamp())"
    "    WHERE id = o->>1;"
    "   PERFORM tell('t:' || (o->>1));"
    "  WHEN 'remove' THEN"
    "   v_bad := guard_task(o->>1, o->>2, (o->>3)::bigint);"
    "   IF v_bad IS NOT NULL THEN RETURN v_bad; END IF;"
    "   DELETE FROM task WHERE id = o->>1;"
    "   PERFORM tell('t:' || (o->>1));"
    "  WHEN 'release' THEN"
    "   v_bad := guard(o->>1, o->>2, (o->>3)::bigint);"
    "   IF v_bad IS NOT NULL THEN RETURN v_bad; END IF;"
    "   UPDATE lease SET owner = '', until = '-infinity' WHERE target_key = o->>1;"
    "   PERFORM tell('l');"
    "  WHEN 'leave' THEN"
    "   UPDATE lease SET owner = '', until = '-infinity' WHERE owner = o->>1;"
    "   DELETE FROM daemon WHERE id = o->>1;"
    "   PERFORM tell('l');"
    "  WHEN 'spec' THEN" /* only what is not sealed yet is equal to its text */
    "   UPDATE task SET spec_json = o->>3 WHERE id = o->>1 AND spec_json = o->>2;"
    "  WHEN 'facts' THEN"
    "   PERFORM CASE WHEN f->>1 IS NULL THEN raise_epoch(f->>0, (f->>2)::bigint)"
    "    ELSE change('', jsonb_build_array('tick', f->0, f->1, f->2)) END FROM jsonb_array_elements(o->1) AS f;"
    "  WHEN 'undo' THEN"
    "   DELETE FROM task WHERE id = o->>1 AND nonce = o->>2 AND state = 0;"
    "   PERFORM tell('t:' || (o->>1));"
    "  END CASE;"
    "  RETURN NULL;"
    " END $f$;"

    /* A group of changes, in order: for each NULL or what became of it. */
    "CREATE FUNCTION apply(p_session text, p_seq bigint, p_ops jsonb) RETURNS jsonb LANGUAGE plpgsql AS $f$"
    " DECLARE o jsonb; v_out jsonb[] := '{}';"
    " BEGIN"
    "  INSERT INTO fence AS f VALUES (p_session, p_seq, clock_timestamp())"
    "   ON CONFLICT (session) DO UPDATE SET seq = excluded.seq, used = excluded.used WHERE f.seq <= excluded.seq;"
    "  IF NOT FOUND THEN RAISE EXCEPTION 'a later group was carried out already' USING ERRCODE = '40MC1'; END IF;"
    "  FOR o IN SELECT x FROM jsonb_array_elements(p_ops) WITH ORDINALITY AS t(x, n) ORDER BY n LOOP"
    "   v_out := array_append(v_out, coalesce(apply_one(o), 'null'::jsonb));"
    "  END LOOP;"
    "  RETURN to_jsonb(v_out);"
    " END $f$;"

    "CREATE FUNCTION wants(t task) RETURNS boolean LANGUAGE sql IMMUTABLE AS $f$ SELECT t.state <> 2 OR t.keep $f$;"

    /* Free targets with tasks that want an owner, until the share is reached. */
    "CREATE FUNCTION take_free(p_owner text, p_lease_ms bigint, p_share bigint) RETURNS void LANGUAGE plpgsql AS $f$"
    " DECLARE v_have bigint; r record;"
    " BEGIN"
    "  SELECT count(*) INTO v_have FROM task t JOIN lease l USING (target_key) WHERE l.owner = p_owner AND wants(t);"
    "  IF v_have >= p_share THEN RETURN; END IF;"
    "  INSERT INTO lease SELECT DISTINCT target_key, '', 0, clock_timestamp(), '-infinity'::timestamptz FROM task"
    "   WHERE NOT EXISTS (SELECT 1 FROM lease l WHERE l.target_key = task.target_key) ORDER BY 1"
    "   ON CONFLICT (target_key) DO NOTHING;"
    "  FOR r IN SELECT t.target_key AS k, count(*) AS n FROM task t JOIN lease l USING (target_key)"
    "    WHERE wants(t) AND (l.owner = '' OR l.until < clock_timestamp()) GROUP BY 1 ORDER BY 1 LOOP"
    "   EXIT WHEN v_have >= p_share;"
    "   PERFORM 1 FROM lease WHERE target_key = r.k AND (owner = '' OR until < clock_timestamp())"
    "    FOR UPDATE SKIP LOCKED;"
    "   CONTINUE WHEN NOT FOUND;"
    "   UPDATE lease SET owner = p_owner, epoch = epoch + 1, since = clock_timestamp(),"
    "    until = clock_timestamp() + p_lease_ms * interval '1 ms' WHERE target_key = r.k;"
    "   v_have := v_have + r.n;"
    "  END LOOP;"
    " END $f$;"

    "CREATE FUNCTION beat(p_owner text, p_lease_ms bigint, p_want boolean) RETURNS jsonb LANGUAGE plpgsql AS $f$"
    " DECLARE v_now timestamptz := clock_timestamp(); v_until timestamptz; v_daemons bigint; v_wanting bigint;"
    "  v_next timestamptz; v_leases jsonb;"
    " BEGIN"
    "  SELECT until INTO v_until FROM daemon WHERE id = p_owner;"
    "  IF NOT FOUND OR v_until < v_now THEN PERFORM tell('l'); END IF;" /* it joined */
    "  v_until := v_now + p_lease_ms * interval '1 ms';"
    "  INSERT INTO daemon VALUES (p_owner, v_until) ON CONFLICT (id) DO UPDATE SET until = excluded.until;"
    "  UPDATE lease SET until = v_until WHERE owner = p_owner;"
    "  DELETE FROM daemon WHERE id IN (SELECT id FROM daemon WHERE until < v_now FOR UPDATE SKIP LOCKED);"
    "  DELETE FROM fence WHERE used < v_now - interval '7 days';"
    "  DELETE FROM request WHERE until < v_now - interval '1 min';"
    "  SELECT count(*) INTO v_daemons FROM daemon WHERE until >= v_now;"
    "  SELECT count(*) INTO v_wanting FROM task t WHERE wants(t);"
    "  IF p_want THEN"
    "   PERFORM take_free(p_owner, p_lease_ms, (v_wanting + v_daemons - 1) / v_daemons);"
    "  END IF;"
    "  SELECT min(until) INTO v_next FROM"
    "   (SELECT until FROM lease WHERE owner NOT IN ('', p_owner) AND until >= v_now"
    "    UNION ALL SELECT until FROM daemon WHERE id <> p_owner AND until >= v_now) AS x;"
    "  SELECT jsonb_agg(jsonb_build_array(target_key, epoch, wall_ms(since)) ORDER BY target_key COLLATE \"C\")"
    "   INTO v_leases FROM lease WHERE owner = p_owner;"
    "  RETURN jsonb_build_object('leases', coalesce(v_leases, '[]'::jsonb), 'daemons', v_daemons, 'wanting', v_wanting,"
    "   'next', CASE WHEN v_next IS NULL THEN -1"
    "    ELSE greatest(ceil(extract(epoch FROM v_next - clock_timestamp()) * 1000)::bigint, 0) END);"
    " END $f$;"

    "CREATE FUNCTION ask(p_nonce text, p_key text, p_body text, p_limit_ms bigint) RETURNS void LANGUAGE plpgsql AS $f$"
    " BEGIN"
    "  INSERT INTO request (nonce, target_key, body, until)"
    "   VALUES (p_nonce, p_key, p_body, clock_timestamp() + p_limit_ms * interval '1 ms')"
    "   ON CONFLICT (nonce) DO NOTHING;"
    "  PERFORM tell('r');"
    " END $f$;"
    "CREATE FUNCTION give_answer(p_id bigint, p_answer text) RETURNS void LANGUAGE plpgsql AS $f$"
    " DECLARE v_nonce text;"
    " BEGIN"
    "  UPDATE request SET answer = p_answer WHERE id = p_id AND answer IS NULL RETURNING nonce INTO v_nonce;"
    "  IF FOUND THEN PERFORM tell('a:' || v_nonce); END IF;"
    " END $f$;",
    "ALTER TABLE checkpoint ADD COLUMN span_tt bigint NOT NULL DEFAULT 0;"
    "CREATE OR REPLACE FUNCTION change(p_task text, c jsonb) RETURNS void LANGUAGE plpgsql AS $f$"
    " BEGIN"
    "  CASE c->>0"
    "  WHEN 'ckpt' THEN"
    "   INSERT INTO checkpoint VALUES (p_task, c->>1, c->>2, (c->>3)::bigint, (c->>4)::bigint, (c->>5)::bigint,"
    "    (c->>6)::bigint, (c->>7)::bigint, (c->>8)::bigint, (c->>9)::bigint, (c->>10)::bigint, (c->>11)::bigint,"
    "    (c->>12)::bigint, (c->>13)::bigint, (c->>14)::bigint, (c->>15)::bigint, c->>16,"
    "    coalesce((c->>17)::bigint, 0))" /* a daemon of version 1 has none */
    "   ON CONFLICT (task_id, src_channel, dst_channel) DO UPDATE SET"
    "    start_major = excluded.start_major, start_minor = excluded.start_minor, start_tt = excluded.start_tt,"
    "    done_major = excluded.done_major, done_minor = excluded.done_minor, done_tt = excluded.done_tt,"
    "    sent_major = excluded.sent_major, sent_minor = excluded.sent_minor, sent_tt = excluded.sent_tt,"
    "    retimed_tt = excluded.retimed_tt, op_major = excluded.op_major, op_minor = excluded.op_minor,"
    "    op_tt = excluded.op_tt, target_pos = excluded.target_pos, span_tt = excluded.span_tt;"
    "  WHEN 'del_ckpt' THEN"
    "   DELETE FROM checkpoint WHERE task_id = p_task AND src_channel = c->>1 AND dst_channel = c->>2;"
    "  WHEN 'coll' THEN"
    "   INSERT INTO collection VALUES (p_task, (c->>1)::bigint, c->>2)"
    "   ON CONFLICT (task_id, collection_id) DO UPDATE SET json = excluded.json;"
    "  WHEN 'del_coll' THEN"
    "   DELETE FROM collection WHERE task_id = p_task AND collection_id = (c->>1)::bigint;"
    "  WHEN 'tick' THEN" /* only upwards, compared as unsigned numbers: a negative pattern is the greater one */
    "   INSERT INTO target_tick AS t VALUES (c->>1, c->>2, (c->>3)::bigint)"
    "   ON CONFLICT (target, dst_channel) DO UPDATE SET tt = excluded.tt"
    "   WHERE CASE WHEN (t.tt < 0) = (excluded.tt < 0) THEN excluded.tt > t.tt ELSE excluded.tt < 0 END;"
    "  WHEN 'set_tick' THEN"
    "   INSERT INTO target_tick VALUES (c->>1, c->>2, (c->>3)::bigint)"
    "   ON CONFLICT (target, dst_channel) DO UPDATE SET tt = excluded.tt;"
    "  END CASE;"
    " END $f$;",
    "ALTER TABLE task ADD COLUMN verify text NOT NULL DEFAULT '';"
    "CREATE OR REPLACE FUNCTION do_commit(p_task text, p_owner text, p_epoch bigint, p_changes jsonb) RETURNS jsonb"
    " LANGUAGE plpgsql AS $f$"
    " DECLARE v_key text; v_bad jsonb; c jsonb;"
    " BEGIN"
    "  SELECT target_key INTO v_key FROM task WHERE id = p_task;"
    "  IF NOT FOUND THEN RETURN '{\"e\":\"removed\"}'; END IF;"
    "  v_bad := guard(v_key, p_owner, p_epoch);"
    "  IF v_bad IS NOT NULL THEN RETURN v_bad; END IF;"
    "  FOR c IN SELECT x FROM jsonb_array_elements(p_changes) WITH ORDINALITY AS t(x, n) ORDER BY n LOOP"
    "   IF c->>0 = 'verify' THEN UPDATE task SET verify = c->>1 WHERE id = p_task;"
    "   ELSE PERFORM change(p_task, c); END IF;"
    "  END LOOP;"
    "  RETURN NULL;"
    " END $f$;",
};

/* The advisory lock goes with the transaction: two daemons that start at once migrate one after the other. */
char *pgreg_migrate_sql(void)
{
    char *sql = xasprintf(
        "DO $do$ DECLARE v int; v_schema text := current_setting('search_path'); BEGIN"
        " PERFORM pg_advisory_xact_lock(%d);"
        " IF current_schema() IS NULL THEN EXECUTE 'CREATE SCHEMA ' || v_schema; END IF;"
        " IF to_regclass(v_schema || '.schema_version') IS NULL THEN"
        "  CREATE TABLE schema_version (version int PRIMARY KEY, applied timestamptz NOT NULL);"
        " END IF;"
        " SELECT coalesce(max(version), 0) INTO v FROM schema_version;"
        " IF v > %d THEN RAISE EXCEPTION USING ERRCODE = '" PGREG_NEWER "',"
        "  MESSAGE = format('its schema has version %%s, this milvus-cdc knows up to %d', v); END IF;",
        PGREG_LOCK, PGREG_SCHEMA, PGREG_SCHEMA);

    for (int i = 0; i < PGREG_SCHEMA; i++) {
        char *more = xasprintf("%s IF v < %d THEN EXECUTE $m$%s$m$; INSERT INTO schema_version VALUES (%d,"
                               " clock_timestamp()); END IF;",
                               sql, i + 1, migrations[i], i + 1);

        free(sql);
        sql = more;
    }
    char *end = xasprintf("%s END $do$", sql);

    free(sql);
    return end;
}

const char pgreg_list_sql[] =
    "SELECT t.id, spec_json, target_key, state, reason, created_ms, updated_ms, keep::int,"
    " CASE WHEN until >= clock_timestamp() THEN owner ELSE '' END, coalesce(epoch, 0), coalesce(wall_ms(since), 0), verify"
    " FROM task t LEFT JOIN lease USING (target_key) WHERE $1::text IS NULL OR t.id = $1 ORDER BY t.id COLLATE \"C\"";

const char pgreg_load_sql[] =
    "SELECT (SELECT json_agg(json_build_array(src_channel, dst_channel, start_major, start_minor, start_tt, done_major,"
    " done_minor, done_tt, sent_major, sent_minor, sent_tt, retimed_tt, op_major, op_minor, op_tt, target_pos,"
    " span_tt) ORDER BY src_channel COLLATE \"C\", dst_channel COLLATE \"C\") FROM checkpoint WHERE task_id = $1),"
    " (SELECT json_agg(json_build_array(collection_id, json) ORDER BY collection_id) FROM collection"
    " WHERE task_id = $1)";

const char pgreg_tick_sql[] = "SELECT tt FROM target_tick WHERE target = $1 AND dst_channel = $2";

const char pgreg_facts_sql[] = "SELECT target, dst_channel, tt FROM target_tick"
                               " UNION ALL SELECT target_key, NULL, epoch FROM lease ORDER BY 1, 2";
