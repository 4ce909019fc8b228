#!/usr/bin/env bash
# check-deps.sh - fails on an #include that the layers forbid (the table of the project's style). Names file and line.
set -euo pipefail
cd "$(dirname "$0")/.."

# layer: the layers of ours it may include
declare -A ours=(
    [base]="base"
    [loop]="base loop"
    [net]="base loop net"
    [pg]="base loop pg"
    [repl]="base loop repl"
    [wal]="base loop net wal repl/port.h"
    [milvus]="base loop net milvus repl/port.h"
    [registry]="base loop pg registry repl/port.h"
    [task]="base loop net pg repl wal milvus registry task daemon/config.h"
    [api]="base loop net pg repl wal milvus registry task api daemon/config.h"
    [cli]="base loop net pg registry cli repl/port.h daemon/config.h daemon/registry.h"
    [daemon]="base loop net pg repl wal milvus registry task api cli daemon"
)
# layer: libraries it may include, besides libc
declare -A foreign=(
    [base]="event2/buffer.h uthash" # evbuffers are how bytes travel here; no loop
    [loop]="event2"
    [net]="event2 nghttp2 openssl"
    [pg]="event2 libpq-fe"
    [repl]="jansson uthash utlist sodium event2/buffer.h"
    [wal]="event2 rocksdb librdkafka lz4 zstd snappy-c zlib openssl jansson uthash utlist protobuf-c generated"
    [milvus]="event2 nghttp2 jansson uthash utlist protobuf-c generated"
    [registry]="event2 sqlite3 sodium jansson uthash utlist"
    [task]="event2 jansson uthash utlist"
    [api]="event2 jansson uthash utlist nghttp2 openssl"
    [cli]="event2 jansson openssl"
    [daemon]="event2 jansson uthash utlist yaml nghttp2 openssl sqlite3 rocksdb"
)
bad=0

allowed() { # PATH LIST: is PATH itself, its folder or its name without .h in LIST?
    local path=$1 word
    for word in $2; do
        [[ $path == "$word" || $path == "$word"/* || $path == "$word".h ]] && return 0
    done
    return 1
}

while IFS=: read -r file line text; do
    layer=${file#*/}
    layer=${layer%%/*}
    path=${text#*[<\"]}
    path=${path%%[>\"]*}
    if [[ -z ${ours[$layer]+x} ]]; then
        printf '%s:%s: unknown layer %s\n' "$file" "$line" "$layer"
        bad=1
    elif [[ $path == *.pb-c.h ]]; then
        allowed generated "${foreign[$layer]}" || { printf '%s:%s: generated code in %s/\n' "$file" "$line" "$layer"; bad=1; }
    elif [[ -n ${ours[${path%%/*}]+x} && $path == */* ]]; then
        allowed "$path" "${ours[$layer]}" || { printf '%s:%s: %s/ must not include %s\n' "$file" "$line" "$layer" "$path"; bad=1; }
    elif [[ $path =~ ^(event2|nghttp2|openssl|rocksdb|librdkafka|google|protobuf-c)/ || $path =~ ^(jansson|sqlite3|yaml|uthash|utlist|libpq-fe|sodium|lz4|zstd|snappy-c|zlib)\.h$ ]]; then
        allowed "$path" "${foreign[$layer]}" || { printf '%s:%s: %s/ must not include <%s>\n' "$file" "$line" "$layer" "$path"; bad=1; }
    fi
done < <(grep -rnE '^[[:space:]]*#[[:space:]]*include' src include --include='*.c' --include='*.h')

[ $bad = 0 ] && echo "layers: every include is allowed"
exit $bad
