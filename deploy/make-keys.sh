#!/bin/sh
# Makes, once, what the parts of a fleet need to trust one another; what is there already stays.
#
#   make-keys.sh FOLDER NODE...
#
#   FOLDER/cloud       cloud.key cloud.pub metrics-token, nodes/NODE.pub: the allow-list
#   FOLDER/NODE        node.key cloud.pub metrics-token
#   FOLDER/prometheus  metrics-token, which its own user has to read
#
# Mount each folder where it belongs, and no other.
set -eu
umask 077

folder=$1
shift
mkdir -p "$folder/cloud/nodes" "$folder/prometheus"

[ -e "$folder/cloud/cloud.key" ] || rac keys server --out "$folder/cloud"
token="$folder/cloud/metrics-token"
if [ ! -e "$token" ]; then
    od -An -N24 -tx1 /dev/urandom | tr -d ' \n' > "$token.new"
    mv "$token.new" "$token"
fi

for node in "$@"; do
    if [ ! -e "$folder/$node/node.key" ]; then
        rm -rf "$folder/$node/new"
        rac keys node "$node" --out "$folder/$node/new"
        mv "$folder/$node/new/$node.pub" "$folder/cloud/nodes/$node.pub"
        mv "$folder/$node/new/$node.key" "$folder/$node/node.key"
        rmdir "$folder/$node/new"
    fi
    cp "$folder/cloud/cloud.pub" "$token" "$folder/$node/"
done

cp "$token" "$folder/prometheus/metrics-token"
chmod 0755 "$folder/prometheus"
chmod 0644 "$folder/prometheus/metrics-token"

# In a container that root runs: the files are for the user of the images.
if [ "$(id -u)" -eq 0 ] && id rac > /dev/null 2>&1; then
    for part in cloud "$@"; do
        chown -R rac:rac "$folder/$part"
        chmod 0700 "$folder/$part"
    done
fi
