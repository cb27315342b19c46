/* What the agent remembers besides its talks: the table `memories` of workspace/memory.db, like the agent's. */
#include "standin.h"
#include <ctype.h>
#include <sqlite3.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define DATABASE "memory.db" /* in the workspace, where the process is */
#define RECALLED 5           /* notes put before a message, at most */
#define CONTEXT_MAX 4000

static const char *schema =
    "PRAGMA journal_mode = WAL;"
    "CREATE TABLE IF NOT EXISTS memories (id TEXT PRIMARY KEY, key TEXT NOT NULL UNIQUE, content TEXT NOT NULL,"
    " category TEXT NOT NULL DEFAULT 'core', session_id TEXT, created_at TEXT NOT NULL, updated_at TEXT NOT NULL);"
    "CREATE VIRTUAL TABLE IF NOT EXISTS memories_fts USING fts5(key, content, content=memories, content_rowid=rowid);"
    "CREATE TRIGGER IF NOT EXISTS memories_ai AFTER INSERT ON memories BEGIN"
    " INSERT INTO memories_fts(rowid, key, content) VALUES (new.rowid, new.key, new.content); END;";

static sqlite3_stmt *prepare(sqlite3 *db, const char *sql, int count, const char *const *values)
{
    sqlite3_stmt *statement = NULL;
    if (sqlite3_prepare_v2(db, sql, -1, &statement, NULL) == SQLITE_OK)
        for (int i = 0; i < count; i++)
            sqlite3_bind_text(statement, i + 1, values[i], -1, SQLITE_TRANSIENT);
    return statement;
}

sqlite3 *memory_open(void)
{
    sqlite3 *db = NULL;
    if (sqlite3_open(DATABASE, &db) == SQLITE_OK) {
        sqlite3_busy_timeout(db, 5000);
        if (sqlite3_exec(db, schema, NULL, NULL, NULL) == SQLITE_OK)
            return db;
    }
    sqlite3_close(db);
    return NULL;
}

char *memory_get(sqlite3 *db, const char *key)
{
    sqlite3_stmt *found = prepare(db, "SELECT content FROM memories WHERE key = ?", 1, &key);
    char *content = sqlite3_step(found) == SQLITE_ROW ? strdup((const char *)sqlite3_column_text(found, 0)) : NULL;
    sqlite3_finalize(found);
    return content;
}

bool memory_store(sqlite3 *db, const char *key, const char *content, const char *category)
{
    const char *values[] = {key, content, category};
    sqlite3_stmt *insert = prepare(db,
                                   "INSERT INTO memories VALUES (lower(hex(randomblob(8))), ?1, ?2, ?3, NULL,"
                                   " strftime('%s', 'now'), strftime('%s', 'now'))",
                                   3, values);
    bool stored = sqlite3_step(insert) == SQLITE_DONE;
    sqlite3_finalize(insert);
    return stored;
}

/* "who eats figs" -> "who" OR "eats" OR "figs" */
static char *any_word(const char *text)
{
    struct buf query = {0};
    buf_add(&query, "", 0);
    while (*text) {
        size_t len = 0;
        while (isalnum((unsigned char)text[len]) || (unsigned char)text[len] >= 0x80)
            len++;
        if (len)
            buf_printf(&query, "%s\"%.*s\"", query.len ? " OR " : "", (int)len, text);
        text += len + (text[len] ? 1 : 0);
    }
    return query.data;
}

char *memory_recall(const char *text)
{
    sqlite3 *db = NULL;
    if (access(DATABASE, F_OK) != 0 || sqlite3_open_v2(DATABASE, &db, SQLITE_OPEN_READWRITE, NULL) != SQLITE_OK) {
        sqlite3_close(db);
        return NULL;
    }
    char *words = any_word(text);
    sqlite3_stmt *found = prepare(db,
                                  "SELECT memories.key, memories.content FROM memories_fts JOIN memories"
                                  " ON memories.rowid = memories_fts.rowid WHERE memories_fts MATCH ?1 ORDER BY rank",
                                  1, (const char *const *)&words);
    struct buf context = {0};
    for (int i = 0; i < RECALLED && context.len < CONTEXT_MAX && sqlite3_step(found) == SQLITE_ROW; i++)
        buf_printf(&context, "%s- %s: %.2000s\n", i ? "" : "[Memory context]\n", sqlite3_column_text(found, 0),
                   sqlite3_column_text(found, 1));
    if (context.len)
        buf_printf(&context, "\n");
    sqlite3_finalize(found);
    sqlite3_close(db);
    free(words);
    return context.data;
}
