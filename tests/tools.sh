#!/usr/bin/env bash
# Gets what the tests need beside cargo, from Debian's packages: RabbitMQ, Redis, Chromium with its driver, promtool,
# systemd-analyze, and for the producers' examples pika, Node and PHP; amqplib comes from npm. Helm's engine and the schemas
# of Kubernetes come from PyPI.
set -euo pipefail
cd "$(dirname "$0")/.."

deploy/rabbitmq.sh install
deploy/redis.sh install
missing=()
has() { command -v "$1" >/dev/null; }
{ has chromium && has chromedriver; } || missing+=(chromium chromium-driver)
has promtool || missing+=(prometheus)
has systemd-analyze || missing+=(systemd)
/usr/bin/python3 -c 'import pika' 2>/dev/null || missing+=(python3-pika)
/usr/bin/python3 -m pip --version >/dev/null 2>&1 || missing+=(python3-pip)
{ has php && [ -f /usr/share/php/PhpAmqpLib/autoload.php ]; } || missing+=(php-cli php-amqplib)
{ has node && has npm; } || missing+=(nodejs npm)
[ ${#missing[@]} -eq 0 ] || deploy/debian.sh "${missing[@]}"

amqplib=2.3.1
if [ ! -d target/node/node_modules/amqplib ]; then
    mkdir -p target/node
    npm install --prefix target/node --no-audit --no-fund --ignore-scripts --loglevel error "amqplib@$amqplib" >/dev/null
fi

helm=0.2.2 schemas=1.37.0
if [ ! -f "target/kubernetes/$helm-$schemas" ]; then
    new=target/kubernetes.new
    rm -rf $new target/kubernetes
    mkdir -p $new
    pip() { PIP_ROOT_USER_ACTION=ignore /usr/bin/python3 -m pip "$@" --quiet --disable-pip-version-check --no-deps; }
    pip install --target $new "helm-python-sdk==$helm"
    # The library is in it three times, under three names; the package looks for this one first.
    find $new/helm_python/lib -name 'libhelm_c.so*' ! -name "*.so.$helm" -delete
    # Of many versions' schemas the newest, in which an unknown field is a fault.
    pip download --dest $new "kubernetes-validate==$schemas"
    wheel=$(echo $new/kubernetes_validate-*.whl)
    /usr/bin/python3 - "$wheel" "v$schemas-local-strict/_definitions.json" >$new/schemas.json <<'END'
import sys, zipfile
sys.stdout.buffer.write(zipfile.ZipFile(sys.argv[1]).read("kubernetes_validate/kubernetes-json-schema/" + sys.argv[2]))
END
    rm "$wheel"
    touch "$new/$helm-$schemas"
    mv $new target/kubernetes
fi
