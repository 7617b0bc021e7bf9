// A cluster app: the primary hands connections to its workers in turn. A worker that crashes is forked anew, and on
// SIGUSR2 the workers are replaced, one after the other, without a request lost.
'use strict';
const cluster = require('node:cluster');
const http = require('node:http');

const { PORT = '8080', HOST = '0.0.0.0', WORKERS = '3' } = process.env;

if (cluster.isPrimary) primary();
else worker();

function primary() {
  for (let n = 0; n < Number(WORKERS); n += 1) cluster.fork();
  // One that was asked to leave is replaced already; any other is missing.
  cluster.on('exit', (gone) => gone.exitedAfterDisconnect || cluster.fork());
  process.on('SIGUSR2', () => replace(Object.values(cluster.workers)));
  process.on('SIGTERM', () => cluster.disconnect(() => process.exit(0)));
}

function replace([old, ...others]) {
  if (!old) return;
  // The new one listens before the old one is let go.
  cluster.fork().once('listening', () => {
    old.once('exit', () => replace(others));
    if (old.isConnected()) old.disconnect();
    else replace(others);
  });
}

function worker() {
  const server = http.createServer((request, response) => {
    response.end(`${process.pid}\n`);
    if (request.url === '/crash') response.once('close', () => { throw new Error('a bug'); });
  });
  server.listen(Number(PORT), HOST);
  // Crashed is crashed; but what it has begun is finished first, and what the primary sends it meanwhile is given back.
  process.on('uncaughtException', () => {
    server.close();
    setTimeout(() => process.exit(1), 500);
  });
}
