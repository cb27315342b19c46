DROP TABLE entry;
DROP TABLE call;
DROP TABLE account;
