// An app that takes a free port, registers itself with Consul under a fresh id, and deregisters when it is told to end.
// Killed with SIGKILL it says nothing to anybody: Consul goes on believing in it, and only a health check finds out.
// CONSUL, SERVICE, TAGS and HOST say with whom, as what and where.
'use strict';
const http = require('node:http');
const Consul = require('consul');
const { nanoid } = require('nanoid');
const portfinder = require('portfinder');

const { CONSUL = '127.0.0.1', SERVICE = 'api-service', TAGS = '', HOST = '127.0.0.1' } = process.env;
// Time for balancers to hear that this instance leaves, before it stops to accept.
const LEAVE = 3000;

const consul = new Consul({ host: CONSUL });
const id = nanoid();

async function main() {
  const port = await portfinder.getPortPromise({ host: HOST });
  const server = http.createServer((request, response) => response.end(`${SERVICE} at ${HOST}\n`));
  server.listen(port, HOST, () =>
    consul.agent.service.register({ id, name: SERVICE, address: HOST, port, tags: TAGS.split(',').filter(Boolean) }));

  const leave = async () => {
    await consul.agent.service.deregister(id);
    setTimeout(() => server.close(() => process.exit(0)), LEAVE);
  };
  process.on('SIGTERM', leave);
  process.on('SIGINT', leave);
}

main();
