// `pm2 start ecosystem.config.js`, then `pm2 reload app` whenever there is a new version.
'use strict';

module.exports = {
  apps: [{
    name: 'app',
    script: `${__dirname}/../app.js`,
    exec_mode: 'cluster',
    instances: 2,
    // The old process is let go when the new one has said 'ready', and killed when it does not end in time.
    wait_ready: true,
    listen_timeout: 20000,
    kill_timeout: 5000,
  }],
};
