#include "standin.h"
#include <malloc.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int usage(void)
{
    fputs("usage: nullclaw gateway [--host HOST] [--port PORT] | agent -m MESSAGE |\n"
          "                migrate openclaw [--dry-run] [--source PATH] | --version\n", stderr);
    return 1;
}

static void *end_late(void *unused)
{
    (void)unused;
    sleep(4);
    die("error: the stand-in's variant \"late\" ends here, some seconds after its start");
}

/* The options win over the environment, the environment over the configuration. */
static int serve(int count, char **arguments)
{
    agent_load();
    char *configured = format("%ld", number_at(config, "gateway.port", 3000));
    const char *port = getenv("NULLCLAW_GATEWAY_PORT") ? getenv("NULLCLAW_GATEWAY_PORT") : configured;
    const char *host = getenv("NULLCLAW_GATEWAY_HOST");
    if (!host)
        host = text_at(config, "gateway.host", "127.0.0.1");
    for (int i = 0; i + 1 < count; i += 2) {
        if (strcmp(arguments[i], "--host") == 0)
            host = arguments[i + 1];
        else if (strcmp(arguments[i], "--port") == 0)
            port = arguments[i + 1];
        else
            return usage();
    }
    int fd = listen_on(host, port);
    say("info(gateway): listening on %s:%s", host, port);
    const char *variant = getenv("STANDIN_VARIANT");
    bool picky = variant && strcmp(variant, "picky") == 0 && getenv("STANDIN_BREAKS");
    if (picky || (variant && strcmp(variant, "crash") == 0))
        die("error: the stand-in's variant \"%s\" ends here, after its start", variant);
    pthread_t end;
    if (variant && strcmp(variant, "late") == 0 && pthread_create(&end, NULL, end_late, NULL) != 0)
        die("error: no thread");
    web_start();
    telegram_start();
    gateway_serve(fd, strncmp(host, "127.", 4) != 0 && strcmp(host, "localhost") != 0 && strcmp(host, "::1") != 0);
}

int main(int count, char **arguments)
{
    /* Like the agent, it handles no other signal: as PID 1 it ignores SIGTERM, so containers need an init. */
    signal(SIGPIPE, SIG_IGN);
    mallopt(M_ARENA_MAX, 1); /* one heap: memory is what this program is measured by */
    if (count == 2 && strcmp(arguments[1], "--version") == 0) {
        puts("nullclaw " VERSION);
        return 0;
    }
    if (count >= 2 && strcmp(arguments[1], "gateway") == 0)
        return serve(count - 2, arguments + 2);
    if (count >= 2 && strcmp(arguments[1], "migrate") == 0)
        return migrate(count - 2, arguments + 2);
    if (count == 4 && strcmp(arguments[1], "agent") == 0 && strcmp(arguments[2], "-m") == 0) {
        agent_load();
        bool ok;
        puts(agent_turn("cli", arguments[3], &ok));
        return ok ? 0 : 1;
    }
    return usage();
}
