// An app with a memory of its own: it counts how often each client came. Whoever lands on another instance is a
// stranger there. `/?who=CLIENT`; NAME, HOST and PORT say who and where.
'use strict';
const http = require('node:http');

const { PORT = '8080', HOST = '0.0.0.0', NAME = `${process.pid}` } = process.env;
const visits = new Map();

const server = http.createServer((request, response) => {
  const who = new URL(request.url, 'http://app').searchParams.get('who');
  // Health checks are nobody.
  if (who) visits.set(who, (visits.get(who) || 0) + 1);
  response.end(`${NAME} ${visits.get(who) || 0}\n`);
});
server.listen(Number(PORT), HOST);
process.on('SIGTERM', () => server.close(() => process.exit(0)));
