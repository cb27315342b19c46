/* A stand-in for the NullClaw agent: reads its config.json and keeps the hosting contract, oddities included.
   Where a comment says "like the agent", the behaviour was measured on, or read in the source of, the real one. */
#ifndef STANDIN_H
#define STANDIN_H

#define _GNU_SOURCE
#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>

#define VERSION "2026.5.29-standin"

/* ---- util.c ---- */
struct buf {
    char *data; /* always terminated by NUL, never NULL after the first append */
    size_t len;
};
void buf_add(struct buf *b, const void *data, size_t len);
void buf_printf(struct buf *b, const char *format, ...) __attribute__((format(printf, 2, 3)));
char *format(const char *format, ...) __attribute__((format(printf, 1, 2)));
void say(const char *format, ...) __attribute__((format(printf, 1, 2))); /* one line of the log */
void die(const char *format, ...) __attribute__((format(printf, 1, 2), noreturn));
char *read_file(const char *path, size_t max); /* NULL if it cannot be read or is longer than max */
void write_file(const char *path, const char *text); /* by rename; says so in the log if it cannot */
void make_directories(const char *path);
void sleep_ms(long ms);
void start_thread(void *(*run)(void *), void *argument);
void sha256_hex(const char *text, char hex[65]);
char *query_parameter(const char *target, const char *name); /* decoded; NULL if absent */
char *header(const char *request, const char *name);         /* NULL if absent */
int listen_on(const char *host, const char *port);
void send_all(int fd, const char *data, size_t len);
json_t *at(json_t *root, const char *dotted_path); /* borrowed; NULL if absent */
const char *text_at(json_t *root, const char *dotted_path, const char *otherwise);
long number_at(json_t *root, const char *dotted_path, long otherwise);
bool true_at(json_t *root, const char *dotted_path, bool otherwise);

/* ---- http_client.c: what the agent does with curl ---- */
struct reply {
    int status; /* 0 = no HTTP answer; body then says why */
    char *body;
};
struct reply http_post(const char *url, const char *proxy, const char *bearer, const char *body, long seconds);

/* ---- prompt.c ---- */
/* The system prompt of a session. It is made anew only for a new session and after a file of the workspace changed; so a
   session that runs sees another skill only then, like with the agent. */
char *prompt_of(const char *session);
void prompt_forget(const char *session);

/* ---- mcp.c ---- */
extern json_t *mcp_tools;
void mcp_start(void);
char *mcp_call(const char *name, json_t *arguments);

/* ---- memory.c ---- */
struct sqlite3;
struct sqlite3 *memory_open(void);                                /* NULL if it cannot be */
char *memory_get(struct sqlite3 *db, const char *key);           /* NULL if there is no such memory */
bool memory_store(struct sqlite3 *db, const char *key, const char *content, const char *category);
char *memory_recall(const char *text); /* what is put before a message of that text; NULL if nothing */

/* ---- migrate.c ---- */
int migrate(int count, char **arguments);

/* ---- agent.c ---- */
extern json_t *config; /* NULL if there is none that can be read */
extern char *state_directory, *workspace, *config_path;
void config_load(void); /* and go to the workspace */
void agent_load(void); /* ends the process like the agent if the configuration does not do */
/* The answer to one message in a session; *ok = false if the LLM failed (the answer is then what the user is told). */
char *agent_turn(const char *session, const char *text, bool *ok);

/* ---- channels ---- */
void gateway_serve(int fd, bool public_bind) __attribute__((noreturn));
void telegram_start(void);
bool telegram_update(json_t *account, const char *name, json_t *update); /* true if it was accepted */
void web_start(void);

#endif
